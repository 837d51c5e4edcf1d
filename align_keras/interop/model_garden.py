"""Convert EfficientNet and BERT of the TensorFlow Model Garden (`official`)."""

import numpy as np
import yaml

from align_keras.interop.efficientnet import coefficients
from align_keras.interop.efficientnet import parts
from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.foreign_weights import require_values
from align_keras.interop.huggingface_bert import bert_layers
from align_keras.interop.links import copy_layers
from align_keras.interop.original_bert import OriginalBert
from align_keras.interop.tensorflow_checkpoint import find_prefix
from align_keras.io.optional import require
from align_keras.io.text import read_text
from align_keras.models import BertTextEncoder
from align_keras.models import EfficientNetBackbone
from align_keras.preprocessing import AlignImageConverter

# Where their checkpoints may keep the network, outermost name first.
_EFFICIENTNET_PLACES = (
    "backbone",
    "model/backbone",
    "model/_backbone",
    "model",
)
_BERT_PLACES = ("encoder", "model", "model/encoder", "model/encoder_network")
# What `official.vision` subtracts from pixels and divides them by.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


# === EfficientNet ===


class ModelGardenEfficientNet(ForeignWeights):
    """A directory with params.yaml and a checkpoint of `official.vision`."""

    model_class = EfficientNetBackbone

    def __init__(self, directory, config):
        super().__init__(directory, config)
        model = (config.get("task") or {}).get("model") or {}
        backbone = model.get("backbone") or {}
        require_values(
            {"task.model.backbone.type": backbone.get("type")},
            {"task.model.backbone.type": "efficientnet"},
            f"`{directory}/params.yaml`",
            "no other backbone of the Model Garden can be read",
        )
        self._backbone = backbone.get("efficientnet") or {}
        self._norm = model.get("norm_activation") or {}

    def build(self, cls, **kwargs):
        self._theirs = self._make()
        return cls(**{**_efficientnet_arguments(self._theirs), **kwargs})

    def load_weights(self, model):
        _restore(self._theirs, self.directory, _EFFICIENTNET_PLACES)
        _copy_efficientnet(self._theirs, model, f"`{self.directory}`")

    def parts(self):
        return ["image_converter"]

    def image_converter(self, **kwargs):
        mean, std = np.asarray(_MEAN), np.asarray(_STD)
        return AlignImageConverter(
            **{
                "scale": (1 / (255 * std)).tolist(),
                "offset": (-mean / std).tolist(),
                **kwargs,
            }
        )

    def _make(self):
        networks = require(
            "official.vision.modeling.backbones.efficientnet", extra="tf-models"
        )
        return networks.EfficientNet(
            model_id=self._backbone.get("model_id", "b0"),
            se_ratio=self._backbone.get("se_ratio", 0.0),
            activation=self._norm.get("activation", "relu"),
            norm_epsilon=self._norm.get("norm_epsilon", 0.001),
        )


def from_model_garden_efficientnet(backbone, **kwargs):
    """Turn an EfficientNet of the Model Garden into our backbone.

    The output equals the last feature map before the head convolution.

    Args:
        backbone: `official.vision.modeling.backbones.EfficientNet`.
        **kwargs: Arguments of `EfficientNetBackbone`.

    Returns:
        An `EfficientNetBackbone`.

    Raises:
        ValueError: Our backbone cannot express the network.
    """
    arguments = _efficientnet_arguments(backbone)
    ours = EfficientNetBackbone(**{**arguments, **kwargs})
    _copy_efficientnet(backbone, ours, f"`{backbone.name}` of the Model Garden")
    return ours


def _efficientnet_arguments(backbone):
    config = _blocks(backbone)[0].get_config()
    require_values(
        config,
        {"se_ratio": 0.25, "norm_epsilon": 0.001},
        "the Model Garden's network",
        "`EfficientNetBackbone` has no other",
    )
    width, depth = coefficients(backbone.get_config()["model_id"])
    activation = _activation(config["activation"])
    squeeze = _activation(config["se_inner_activation"])
    return {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "padding": "same",
        "activation": activation,
        "squeeze_activation": None if squeeze == activation else squeeze,
    }


def _activation(name):
    return "silu" if name in ("swish", "silu", "simple_swish") else name


def _blocks(backbone):
    return [
        layer
        for layer in backbone.layers
        if type(layer).__name__ == "InvertedBottleneckBlock"
    ]


def _copy_efficientnet(theirs, ours, source):
    def first(kind):
        return next(
            layer for layer in theirs.layers if kind in type(layer).__name__
        )

    pairs = {
        "stem_conv": (first("Conv2D"), ours.stem_conv),
        "stem_bn": (first("BatchNormalization"), ours.stem_bn),
    }
    for block, own in zip(_blocks(theirs), ours.blocks, strict=True):
        squeeze = block._squeeze_excitation
        layers = {
            "expand_conv": getattr(block, "_conv0", None),
            "expand_bn": getattr(block, "_norm0", None),
            "depthwise_conv": block._conv1,
            "depthwise_bn": block._norm1,
            "squeeze_reduce": squeeze._se_reduce,
            "squeeze_expand": squeeze._se_expand,
            "project_conv": block._conv2,
            "project_bn": block._norm2,
        }
        for part, layer in parts(own).items():
            pairs[f"{own.name}/{part}"] = (layers[part], layer)
    copy_layers(ours, pairs, source)


# === BERT ===


class ModelGardenBert(OriginalBert):
    """A directory with bert_config.json, a TensorFlow 2 checkpoint, vocab.txt.

    The Model Garden's BERT downloads have this layout.
    """

    def load_weights(self, model):
        networks = require("official.nlp.modeling.networks", extra="tf-models")
        theirs = networks.BertEncoder(
            vocab_size=model.vocabulary_size,
            hidden_size=model.hidden_dim,
            num_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            inner_dim=model.intermediate_dim,
            max_sequence_length=model.max_sequence_length,
            type_vocab_size=model.num_segments,
        )
        _restore(theirs, self.directory, _BERT_PLACES)
        _copy_bert(theirs, model, f"`{self.directory}`")


def from_model_garden_bert(encoder, **kwargs):
    """Turn a `BertEncoder` of the Model Garden into our text encoder.

    The sequence output equals `"sequence_output"` there with segment ids of
    0. The pooler is dropped.

    Args:
        encoder: `official.nlp.modeling.networks.BertEncoder` or
            `BertEncoderV2`, built.
        **kwargs: Arguments of `BertTextEncoder`. Not every encoder reports
            its activation, so `activation` defaults to `"gelu_tanh"`, the
            default there.

    Returns:
        A `BertTextEncoder`.
    """
    config = encoder.get_config()
    require_values(
        config,
        {"norm_first": False, "embedding_width": config["hidden_size"]},
        "the Model Garden's encoder",
        "`BertTextEncoder` has no other",
    )
    ours = BertTextEncoder(
        **{
            "vocabulary_size": config["vocab_size"],
            "num_layers": config["num_layers"],
            "num_heads": config["num_attention_heads"],
            "hidden_dim": config["hidden_size"],
            "intermediate_dim": config["inner_dim"],
            "dropout": config["output_dropout"],
            "max_sequence_length": config["max_sequence_length"],
            "num_segments": config["type_vocab_size"],
            "activation": "gelu_tanh",
            **kwargs,
        }
    )
    _copy_bert(encoder, ours, f"`{encoder.name}` of the Model Garden")
    return ours


def _copy_bert(theirs, ours, source):
    named = {
        "embeddings.word_embeddings": theirs._embedding_layer,
        "embeddings.position_embeddings": theirs._position_embedding_layer,
        "embeddings.token_type_embeddings": theirs._type_embedding_layer,
        "embeddings.LayerNorm": theirs._embedding_norm_layer,
    }
    for index, layer in enumerate(theirs.transformer_layers):
        attention = layer._attention_layer
        for part, sublayer in {
            "attention.self.query": attention._query_dense,
            "attention.self.key": attention._key_dense,
            "attention.self.value": attention._value_dense,
            "attention.output.dense": attention._output_dense,
            "attention.output.LayerNorm": layer._attention_layer_norm,
            "intermediate.dense": layer._intermediate_dense,
            "output.dense": layer._output_dense,
            "output.LayerNorm": layer._output_layer_norm,
        }.items():
            named[f"encoder.layer.{index}.{part}"] = sublayer
    own = bert_layers(ours)
    pairs = {name: (layer, own[name]) for name, layer in named.items()}
    copy_layers(ours, pairs, source)


# === Both ===


def read_params(path):
    """Read the params.yaml of a Model Garden experiment."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is not a YAML file: {error}.") from error
    return content if isinstance(content, dict) else {}


def _restore(network, directory, places):
    """Set every variable of a Model Garden network from a checkpoint."""
    import tensorflow as tf

    prefix = find_prefix(directory)
    errors = []
    for place in places:
        node = network
        for name in reversed(place.split("/")):
            node = tf.train.Checkpoint(**{name: node})
        try:
            # Ignore what a head or an optimizer left in the checkpoint.
            status = node.read(prefix).expect_partial()
            status.assert_existing_objects_matched()
            return
        except (AssertionError, ValueError) as error:
            errors.append(f"{place}: {str(error).splitlines()[0]}")
    raise ValueError(
        f"The checkpoint `{prefix}` does not fit the network, and none of its "
        f"weights was taken over. {' '.join(errors)}"
    )
