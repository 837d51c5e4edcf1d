"""Convert KerasHub's `BertBackbone` to our text encoder."""

import keras_hub

from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.huggingface_bert import bert_layers
from align_keras.interop.links import copy_layers
from align_keras.models import BertTextEncoder
from align_keras.preprocessing import AlignTokenizer

_ARGUMENTS = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "dropout",
    "max_sequence_length",
    "num_segments",
)


class KerasHubBert(ForeignWeights):
    """A preset of `keras_hub.models.BertBackbone`, with its tokenizer.

    Args:
        preset: string. A directory, or a handle such as `kaggle://…`.
        config: dict. The content of its config.json.
    """

    model_class = BertTextEncoder

    def __init__(self, preset, config):
        super().__init__(preset, config)
        self._preset = str(preset)

    def arguments(self):
        config = self.config["config"]
        found = {name: config[name] for name in _ARGUMENTS if name in config}
        return {**found, "activation": "gelu_tanh"}

    def load_weights(self, model):
        theirs = keras_hub.models.BertBackbone.from_preset(self._preset)
        _copy(theirs, model, f"`{self._preset}`")

    def parts(self):
        local = "://" not in self._preset
        if local and not (self.directory / "tokenizer.json").is_file():
            return []
        return ["tokenizer"]

    def tokenizer(self, **kwargs):
        theirs = keras_hub.tokenizers.BertTokenizer.from_preset(self._preset)
        return AlignTokenizer(
            theirs.get_vocabulary(),
            **{
                "lowercase": theirs.lowercase,
                "strip_accents": theirs.strip_accents,
                "split_on_cjk": theirs.split_on_cjk,
                **kwargs,
            },
        )


def from_keras_hub_bert(backbone, **kwargs):
    """Turn a `BertBackbone` into our text encoder, without its pooler.

    The sequence output equals that of the backbone with segment ids of 0.

    Args:
        backbone: `keras_hub.models.BertBackbone`.
        **kwargs: Arguments of `BertTextEncoder`.

    Returns:
        A `BertTextEncoder`.

    Example:

    ```python
    encoder = from_keras_hub_bert(
        keras_hub.models.BertBackbone.from_preset("bert_base_en_uncased")
    )
    ```
    """
    arguments = {name: getattr(backbone, name) for name in _ARGUMENTS}
    # KerasHub always uses the tanh form of GELU, whatever was trained.
    encoder = BertTextEncoder(
        **{**arguments, "activation": "gelu_tanh", **kwargs}
    )
    _copy(backbone, encoder, f"`{backbone.name}` of KerasHub")
    return encoder


def _copy(theirs, ours, source):
    named = bert_layers(ours)
    pairs = {
        name: (layer, named[name])
        for name, layer in bert_layers(theirs).items()
    }
    copy_layers(ours, pairs, source)
