"""Read BERT in Hugging Face's layout."""

import re

from align_keras.interop import huggingface_processor
from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.foreign_weights import require_numbers
from align_keras.interop.foreign_weights import require_values
from align_keras.interop.links import assign
from align_keras.interop.links import torch_links
from align_keras.keras_hub_internals import transformer_parts
from align_keras.models import BertTextEncoder

# Map their activations to ours. We write the first name of each.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
}
# Their fields, with our argument and their default.
_NUMBERS = {
    "vocab_size": ("vocabulary_size", 30522),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "hidden_size": ("hidden_dim", 768),
    "intermediate_size": ("intermediate_dim", 3072),
    "hidden_dropout_prob": ("dropout", 0.1),
    "max_position_embeddings": ("max_sequence_length", 512),
    "type_vocab_size": ("num_segments", 2),
}
_FIXED = {
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
# Heads on top of BERT, its pooler, and position ids that older versions saved.
_UNUSED = re.compile(
    r"(bert\.)?(pooler\.|embeddings\.(position_ids|token_type_ids)$)"
    r"|cls\.|classifier\.|qa_outputs\."
)


class HuggingFaceBert(ForeignWeights):
    """A directory of a BERT model, which becomes a `BertTextEncoder`.

    The pooler and any head are dropped, since ALIGN does not use them.
    """

    model_class = BertTextEncoder

    def arguments(self):
        return encoder_arguments(self.config, f"{self.directory}/config.json")

    def load_weights(self, model):
        tensors = self.tensors()
        prefix = ""
        if any(name.startswith("bert.") for name in tensors.shapes):
            prefix = "bert."
        links = {
            name: link
            for module, layer in bert_layers(model).items()
            for name, link in torch_links(prefix + module, layer).items()
        }
        if f"{prefix}embeddings.LayerNorm.gamma" in tensors.shapes:
            links = {_old_name(name): link for name, link in links.items()}
        assign(model, links, tensors, unused=_UNUSED.match)

    def parts(self):
        found = huggingface_processor.parts(self.directory)
        return [name for name in found if name == "tokenizer"]

    def tokenizer(self, **kwargs):
        return huggingface_processor.read_tokenizer(self.directory, **kwargs)


def encoder_arguments(config, path):
    """Return the `BertTextEncoder` arguments that reproduce a BERT model.

    Args:
        config: dict. The content of Hugging Face's config.json.
        path: string. The path of that file, for error messages.

    Raises:
        ValueError: Our encoder cannot express the network.
    """
    require_numbers(config, _NUMBERS, f"`{path}`")
    require_values(
        config, _FIXED, f"`{path}`", "`BertTextEncoder` has no other"
    )
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_act` in `{path}` must be one of "
            f"{', '.join(ACTIVATIONS)}. Received: {activation!r}."
        )
    numbers = {
        ours: config.get(name, default)
        for name, (ours, default) in _NUMBERS.items()
    }
    return {**numbers, "activation": ACTIVATIONS[activation]}


def bert_layers(encoder):
    """Map the names of BERT's layers to those of a text encoder.

    Args:
        encoder: `BertTextEncoder`, or a `keras_hub.models.BertBackbone`.

    Returns:
        A dict from the name in Hugging Face's layout to the layer.
    """
    norm = getattr(encoder, "embeddings_norm", None)
    named = {
        "embeddings.word_embeddings": encoder.token_embedding,
        "embeddings.position_embeddings": encoder.position_embedding,
        "embeddings.token_type_embeddings": encoder.segment_embedding,
        "embeddings.LayerNorm": norm or encoder.embeddings_layer_norm,
    }
    for index, layer in enumerate(encoder.transformer_layers):
        for part, sublayer in transformer_parts(layer).items():
            named[f"encoder.layer.{index}.{part}"] = sublayer
    return named


def _old_name(name):
    """Return the name of a tensor in files from BERT's first year."""
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
