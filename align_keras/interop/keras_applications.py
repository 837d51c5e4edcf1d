"""Convert `keras.applications.EfficientNetB0` to `B7` to our backbone."""

import re

import numpy as np

from align_keras.interop.efficientnet import find_coefficients
from align_keras.interop.efficientnet import parts
from align_keras.interop.links import copy_layers
from align_keras.models import EfficientNetBackbone
from align_keras.preprocessing import AlignImageConverter

_BLOCK = re.compile(r"block(\d)([a-z])_project_bn")
_SIZES = ("image_size", "resize_size")
_NAMES = {
    "expand_conv": "expand_conv",
    "expand_bn": "expand_bn",
    "depthwise_conv": "dwconv",
    "depthwise_bn": "bn",
    "squeeze_reduce": "se_reduce",
    "squeeze_expand": "se_expand",
    "project_conv": "project_conv",
    "project_bn": "project_bn",
}


def from_keras_applications(model, **kwargs):
    """Turn an EfficientNet of `keras.applications` into our backbone.

    For images prepared by `keras_applications_converter(model)`, the output
    equals the input of the head convolution (`"top_conv"`) in `model`. If the
    model has a fixed image size, it pads by the parity of each map, which is
    `padding="same"`. A model for any size always pads as for even maps, which
    is `"fixed"`.

    Args:
        model: `keras.Model`. One of `keras.applications.EfficientNetB0` to
            `EfficientNetB7`, with or without top.
        **kwargs: Arguments of `EfficientNetBackbone`.

    Returns:
        An `EfficientNetBackbone`.

    Raises:
        ValueError: `model` is not such a network.

    Example:

    ```python
    encoder = from_keras_applications(
        keras.applications.EfficientNetB3(include_top=False)
    )
    ```
    """
    theirs = {layer.name: layer for layer in model.layers}
    width, depth = application_coefficients(model)
    known = None not in model.input_shape[1:3]
    backbone = EfficientNetBackbone(
        width,
        depth,
        **{"padding": "same" if known else "fixed", **kwargs},
    )
    pairs = {
        name: (theirs[name], getattr(backbone, name))
        for name in ("stem_conv", "stem_bn")
    }
    for block in backbone.blocks:
        stage, number = re.findall(r"\d+", block.name)
        prefix = f"block{stage}{chr(ord('a') + int(number) - 1)}_"
        for part, layer in parts(block).items():
            name = prefix + _NAMES[part]
            pairs[name] = (theirs[name], layer)
    copy_layers(backbone, pairs, f"`{model.name}` of keras.applications")
    return backbone


def application_coefficients(model):
    """Return the width and depth coefficients of a model.

    Args:
        model: `keras.Model`. See `from_keras_applications`.

    Raises:
        ValueError: `model` is not such a network.
    """
    stages = {}
    for layer in model.layers:
        if match := _BLOCK.fullmatch(layer.name):
            stages.setdefault(match[1], []).append(layer.gamma.shape[0])
    if not stages:
        raise ValueError(
            "`model` must be one of keras.applications.EfficientNetB0 to "
            f"EfficientNetB7. Received: {model.name}"
        )
    return find_coefficients(
        [len(stage) for stage in stages.values()],
        [stage[0] for stage in stages.values()],
    )


def keras_applications_converter(model, **kwargs):
    """Return a converter that does the preprocessing inside the model.

    `keras.applications.EfficientNet` models rescale and normalise images
    themselves; our backbone leaves this to the converter. For a model with a
    fixed image size, the converter resizes images to that size without
    cropping.

    Args:
        model: `keras.Model`. See `from_keras_applications`.
        **kwargs: Arguments of `AlignImageConverter`.

    Returns:
        An `AlignImageConverter` with the image size of the model.
    """
    scale, offset = np.ones(3), np.zeros(3)
    for layer in model.layers:
        if layer.name == "stem_conv":
            break
        if type(layer).__name__ == "Rescaling":
            factor = np.asarray(layer.scale, "float64")
            scale, offset = scale * factor, offset * factor + layer.offset
        elif type(layer).__name__ == "Normalization":
            mean, variance = (
                np.asarray(value, "float64").reshape(-1)
                for value in (layer.mean, layer.variance)
            )
            deviation = np.maximum(np.sqrt(variance), 1e-7)
            scale, offset = scale / deviation, (offset - mean) / deviation
    height, width = model.input_shape[1:3]
    side = kwargs.get("image_size", (height, width))
    size = {} if side == (None, None) else dict.fromkeys(_SIZES, side)
    return AlignImageConverter(
        **{**size, "scale": scale.tolist(), "offset": offset.tolist(), **kwargs}
    )
