"""Read the original release of BERT, a TensorFlow 1 checkpoint."""

import re

from align_keras.interop import huggingface_processor
from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.huggingface_bert import bert_layers
from align_keras.interop.huggingface_bert import encoder_arguments
from align_keras.interop.links import assign
from align_keras.interop.links import tensorflow_links
from align_keras.interop.tensorflow_checkpoint import TensorFlowCheckpoint
from align_keras.models import BertTextEncoder

# The pooler, the heads of pretraining and of the published tasks, and the state
# of the optimizer.
_UNUSED = re.compile(
    r"bert/pooler/|cls/|output_(weights|bias)$|global_step$"
    r"|.+/adam_[mv]$|beta[12]_power$|good_steps$|loss_scale$"
)


class OriginalBert(ForeignWeights):
    """A directory with bert_config.json, a checkpoint and vocab.txt.

    The original code uses the tanh form of GELU, and so does the encoder.
    Hugging Face uses the exact form for the same weights
    (`activation="gelu"`).
    """

    model_class = BertTextEncoder

    def arguments(self):
        arguments = encoder_arguments(
            self.config, f"{self.directory}/bert_config.json"
        )
        if arguments["activation"] == "gelu":
            arguments["activation"] = "gelu_tanh"
        return arguments

    def load_weights(self, model):
        links = {
            name: link
            for module, layer in bert_layers(model).items()
            for name, link in tensorflow_links(_name(module), layer).items()
        }
        tensors = TensorFlowCheckpoint(self.directory)
        assign(model, links, tensors, unused=_UNUSED.match)

    def parts(self):
        found = huggingface_processor.parts(self.directory)
        return [name for name in found if name == "tokenizer"]

    def tokenizer(self, **kwargs):
        # Only the names of these directories tell whether BERT is cased.
        if "lowercase" not in kwargs and "cased" in self.directory.name:
            uncased = "uncased" in self.directory.name
            kwargs = {"lowercase": uncased, "strip_accents": uncased, **kwargs}
        return huggingface_processor.read_tokenizer(self.directory, **kwargs)


def _name(module):
    """Return TensorFlow's name of a layer, `bert/encoder/layer_0/…`."""
    name = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", module)
    return "bert/" + name.replace(".", "/")
