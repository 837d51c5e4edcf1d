"""Read and write ALIGN in Hugging Face's layout."""

import copy
import re
from pathlib import Path

import numpy as np

from align_keras.interop import huggingface_processor
from align_keras.interop.efficientnet import torch_efficientnet_links
from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.foreign_weights import require_numbers
from align_keras.interop.foreign_weights import require_values
from align_keras.interop.huggingface_bert import ACTIVATIONS
from align_keras.interop.huggingface_bert import bert_layers
from align_keras.interop.huggingface_bert import encoder_arguments
from align_keras.interop.links import assign
from align_keras.interop.links import torch_links
from align_keras.interop.safetensors_file import WEIGHTS
from align_keras.interop.safetensors_file import write_safetensors
from align_keras.io.atomic import atomic_directory
from align_keras.io.json_files import write_json
from align_keras.models import AlignDualEncoder
from align_keras.models import BertTextEncoder
from align_keras.models import EfficientNetBackbone
from align_keras.models.carried import Carried
from align_keras.models.efficientnet_backbone import STAGES
from align_keras.models.towers import require_floats

# Fields of the image tower that are constants in our backbone.
_VISION_FIXED = {
    "num_channels": 3,
    "depth_divisor": 8,
    "kernel_sizes": [stage.kernel_size for stage in STAGES],
    "in_channels": [32, *(stage.filters for stage in STAGES[:-1])],
    "out_channels": [stage.filters for stage in STAGES],
    "strides": [stage.strides for stage in STAGES],
    "num_block_repeats": [stage.repeats for stage in STAGES],
    "expand_ratios": [stage.expansion_ratio for stage in STAGES],
    "squeeze_expansion_ratio": 0.25,
    "depthwise_padding": [],
    "pooling_type": "mean",
    "batch_norm_eps": 1e-3,
}
_VISION_NUMBERS = (
    "width_coefficient",
    "depth_coefficient",
    "drop_connect_rate",
)
_POOLER = "text_model.pooler.dense"
_COUNTER = "num_batches_tracked"
# BERT's pooler, which `AlignModel` computes but does not use; the step counters
# of batch normalisation; and position ids that older versions saved.
_UNUSED = re.compile(
    rf"{re.escape(_POOLER)}\.(weight|bias)$"
    rf"|vision_model\..+\.{_COUNTER}$"
    r"|text_model\.embeddings\.(position_ids|token_type_ids)$"
)


class HuggingFaceAlign(ForeignWeights):
    """A directory of an `AlignModel`, which becomes an `AlignDualEncoder`.

    The model learns the temperature itself (`temperature_form="raw"`), as in
    the training of these checkpoints. The parts that our model does not use
    are kept in `model.carried`, so that `save_huggingface` can write them.
    """

    model_class = AlignDualEncoder

    def build(
        self,
        cls,
        image_encoder=None,
        text_encoder=None,
        preprocessor=None,
        dtype=None,
        **kwargs,
    ):
        image_encoder = self._tower(
            EfficientNetBackbone, self._vision(), image_encoder, dtype
        )
        text_encoder = self._tower(
            BertTextEncoder, self._text(), text_encoder, dtype
        )
        if preprocessor is None:
            preprocessor = self._optional_preprocessor()
        path = f"`{self.directory}/config.json`"
        numbers = ("temperature_init_value", "projection_dim")
        require_numbers(self.config, numbers, path)
        initial = float(self.config.get("temperature_init_value", 1.0))
        model = cls(
            image_encoder,
            text_encoder,
            preprocessor=preprocessor,
            dtype=dtype,
            **{
                "initial_temperature": initial,
                "temperature_range": (min(0.005, initial), max(10.0, initial)),
                "temperature_form": "raw",
                **kwargs,
            },
        )
        self._require_rows(model)
        width = self.config.get("projection_dim", 640)
        own_width = model.image_encoder.output.shape[-1]
        if width != own_width:
            raise ValueError(
                f"`projection_dim` in {path} must equal the {own_width} "
                "channels of the image tower, which `AlignModel` compares "
                "with texts as they are. "
                f"Received: {width}."
            )
        return model

    def _require_rows(self, model):
        """Refuse a tokenizer with more tokens than the text tower."""
        rows = getattr(model.text_encoder, "vocabulary_size", None)
        tokenizer = getattr(model.preprocessor, "tokenizer", None)
        if None in (rows, tokenizer) or tokenizer.vocabulary_size() <= rows:
            return
        raise ValueError(
            f"The tokenizer of `{self.directory}` has "
            f"{tokenizer.vocabulary_size()} tokens, but the text tower only "
            f"{rows} (`vocab_size` in config.json). Use the vocabulary that "
            "the weights were trained with."
        )

    def load_weights(self, model):
        tensors = self.tensors()
        links = {
            "temperature": _TemperatureLink(model.contrastive_head),
            **_links(model),
        }
        # A bias that the caller added keeps its initial value.
        bias = model.contrastive_head.bias
        built = () if bias is None else (bias,)
        assign(model, links, tensors, _UNUSED.match, built)
        extra = set(tensors.shapes) - set(links)
        model.carried = Carried(
            {name: _storable(tensors.read(name)) for name in sorted(extra)},
            self.config,
        )

    def parts(self):
        return huggingface_processor.parts(self.directory)

    def tokenizer(self, **kwargs):
        return huggingface_processor.read_tokenizer(self.directory, **kwargs)

    def image_converter(self, **kwargs):
        return huggingface_processor.read_image_converter(
            self.directory, **kwargs
        )

    def preprocessor(self, **kwargs):
        longest = self._text()["max_sequence_length"]
        length = min(huggingface_processor.SEQUENCE_LENGTH, longest)
        return super().preprocessor(**{"sequence_length": length, **kwargs})

    def _optional_preprocessor(self):
        found = self.parts()
        missing = {"tokenizer", "image_converter"} - set(found)
        return self.preprocessor(**dict.fromkeys(missing)) if found else None

    def _vision(self):
        config = self.config.get("vision_config") or {}
        path = f"{self.directory}/config.json"
        require_values(
            config, _VISION_FIXED, f"`{path}`", "no other network was trained"
        )
        require_numbers(config, _VISION_NUMBERS, f"`{path}`")
        activation = config.get("hidden_act", "swish")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`hidden_act` of the image tower in `{path}` must be one of "
                f"{', '.join(ACTIVATIONS)}. Received: {activation!r}."
            )
        return {
            "width_coefficient": config.get("width_coefficient", 2.0),
            "depth_coefficient": config.get("depth_coefficient", 3.1),
            "dropout": config.get("drop_connect_rate", 0.2),
            "activation": ACTIVATIONS[activation],
            "padding": "fixed",
        }

    def _text(self):
        return encoder_arguments(
            self.config.get("text_config") or {},
            f"{self.directory}/config.json",
        )

    def _tower(self, cls, arguments, replacement, dtype):
        if replacement is not None and not isinstance(replacement, dict):
            return replacement
        return cls(**{"dtype": dtype, **arguments, **(replacement or {})})


class _TemperatureLink:
    """Links the temperature, in whichever form it is learned."""

    shape = ()

    def __init__(self, head):
        self._head = head
        self.weight = head.weights[0]
        self.variable = self

    def to_keras(self, tensor):
        return float(tensor)

    def assign(self, value):
        self._head.set_temperature(value)


def _storable(tensor):
    """Widen 16-bit floats, since NumPy's file format lacks some of them."""
    narrow = tensor.dtype.itemsize == 2 and tensor.dtype.kind not in "iu"
    return tensor.astype("float32") if narrow else tensor


def _links(model):
    """Link everything except the temperature with Hugging Face's names."""
    links = torch_efficientnet_links(
        model.image_encoder,
        [
            f"vision_model.embeddings.{name}"
            for name in ("convolution", "batchnorm")
        ],
        _block_names,
    )
    for name, layer in bert_layers(model.text_encoder).items():
        links |= torch_links(f"text_model.{name}", layer)
    return links | torch_links("text_projection", model.text_projection)


def _block_names(index, block):
    prefix = f"vision_model.encoder.blocks.{index}"
    return {
        "expand_conv": f"{prefix}.expansion.expand_conv",
        "expand_bn": f"{prefix}.expansion.expand_bn",
        "depthwise_conv": f"{prefix}.depthwise_conv.depthwise_conv",
        "depthwise_bn": f"{prefix}.depthwise_conv.depthwise_norm",
        "squeeze_reduce": f"{prefix}.squeeze_excite.reduce",
        "squeeze_expand": f"{prefix}.squeeze_excite.expand",
        "project_conv": f"{prefix}.projection.project_conv",
        "project_bn": f"{prefix}.projection.project_bn",
    }


# === Writing ===


def save_huggingface(model, directory):
    """Write a model for `transformers.AlignModel` and `AlignProcessor`.

    Embeddings and logits are the same there as here. If the model was loaded
    from such a directory, the tensors are the same bit for bit, including
    those that `AlignModel` holds but does not use. Otherwise the unused ones
    are zeros: the pooler of the text tower and the step counters of batch
    normalisation.

    `AlignProcessor` always averages over all pixels when it shrinks an image.
    If our image converter does not, pixels differ by about one grey level on
    average. `preprocessor_config.json` still stores the setting, so that
    reading the directory restores it.

    Args:
        model: `AlignDualEncoder`.
        directory: string or `pathlib.Path`. The directory, which is written
            atomically.

    Raises:
        ValueError: The model is quantised, or `AlignModel` cannot express
            it; the message says why.
        ImportError: The package safetensors is not installed.

    Example:

    ```python
    save_huggingface(model, "align_for_transformers")

    from transformers import AlignModel

    AlignModel.from_pretrained("align_for_transformers")
    ```
    """
    require_floats(model, "written for Hugging Face")
    _require_expressible(model)
    tensors = {name: link.to_foreign() for name, link in _links(model).items()}
    tensors["temperature"] = np.array(model.temperature, "float32")
    tensors = {**_unused_tensors(model, tensors), **tensors}
    with atomic_directory(directory) as temporary:
        write_safetensors(Path(temporary) / WEIGHTS, tensors)
        write_json(Path(temporary) / "config.json", _config(model))
        if model.preprocessor is not None:
            huggingface_processor.write_processor(model.preprocessor, temporary)


def _require_expressible(model):
    image_encoder, text_encoder = model.image_encoder, model.text_encoder
    reasons = {
        "its image encoder is not an `EfficientNetBackbone`": not isinstance(
            image_encoder, EfficientNetBackbone
        ),
        "its text encoder is not a `BertTextEncoder`": not isinstance(
            text_encoder, BertTextEncoder
        ),
        "it has an image projection, and `AlignModel` has none": (
            model.image_projection is not None
        ),
        "it does not average over the places of the feature map": (
            model.image_pooling_layer.mode != "average"
        ),
        "it does not represent a text by its first token": (
            model.text_pooling not in ("auto", "first")
        ),
        "a bias is added to its scores": (
            model.contrastive_head.bias is not None
        ),
        'its image encoder does not use `padding="fixed"`': (
            getattr(image_encoder, "padding", "fixed") != "fixed"
        ),
        "its squeeze has an activation of its own": (
            getattr(image_encoder, "squeeze_activation", None) is not None
        ),
    }
    for kind, encoder in (("image", image_encoder), ("text", text_encoder)):
        activation = getattr(encoder, "activation", "gelu")
        reason = f"the activation {activation!r} of its {kind} encoder"
        reasons[f"{reason} has no counterpart"] = (
            activation not in ACTIVATIONS.values()
        )
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"Hugging Face's `AlignModel` cannot express this model: "
                f"{reason}."
            )


def _unused_tensors(model, tensors):
    hidden = model.text_encoder.hidden_dim
    unused = {
        f"{_POOLER}.weight": np.zeros((hidden, hidden), "float32"),
        f"{_POOLER}.bias": np.zeros(hidden, "float32"),
    }
    for name in tensors:
        if name.endswith(".running_mean"):
            prefix = name.removesuffix("running_mean")
            unused[prefix + _COUNTER] = np.array(0, "int64")
    carried = model.carried.tensors if model.carried else {}
    return unused | {
        name: tensor
        for name, tensor in carried.items()
        if tensor.shape == unused.get(name, tensor).shape
    }


def _config(model):
    """Describe the model, starting from the configuration that it came with."""
    config = copy.deepcopy(model.carried.config) if model.carried else {}
    image_encoder, text_encoder = model.image_encoder, model.text_encoder
    activations = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    text = config.setdefault("text_config", {})
    text.setdefault("attention_probs_dropout_prob", text_encoder.dropout)
    _update(
        text,
        {
            "model_type": "align_text_model",
            "vocab_size": text_encoder.vocabulary_size,
            "hidden_size": text_encoder.hidden_dim,
            "num_hidden_layers": text_encoder.num_layers,
            "num_attention_heads": text_encoder.num_heads,
            "intermediate_size": text_encoder.intermediate_dim,
            "hidden_dropout_prob": text_encoder.dropout,
            "max_position_embeddings": text_encoder.max_sequence_length,
            "type_vocab_size": text_encoder.num_segments,
            "hidden_act": activations[text_encoder.activation],
            "layer_norm_eps": 1e-12,
        },
    )
    vision = config.setdefault("vision_config", {})
    # The size of the average pooling; ours covers the whole map.
    vision.setdefault("hidden_dim", image_encoder.num_features)
    converter = getattr(model.preprocessor, "image_converter", None)
    if converter is not None:
        vision.setdefault("image_size", converter.image_size[0])
    _update(
        vision,
        {
            "model_type": "align_vision_model",
            "width_coefficient": image_encoder.width_coefficient,
            "depth_coefficient": image_encoder.depth_coefficient,
            "drop_connect_rate": image_encoder.dropout,
            "hidden_act": activations[image_encoder.activation],
            **_VISION_FIXED,
        },
    )
    _update(
        config,
        {
            "architectures": ["AlignModel"],
            "model_type": "align",
            "projection_dim": model.embedding_dim,
            "temperature_init_value": model.initial_temperature,
        },
    )
    config.pop("torch_dtype", None)
    return {**config, "dtype": "float32"}


def _update(config, values):
    """Set fields, but keep another name of the same activation."""
    for name, value in values.items():
        if name == "hidden_act":
            old = ACTIVATIONS.get(config.get(name))
            if old is not None and old == ACTIVATIONS[value]:
                continue
        config[name] = value
