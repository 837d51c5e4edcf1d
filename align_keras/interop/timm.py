"""Read timm's EfficientNets, `tf_efficientnet_b0` to `tf_efficientnet_l2`."""

import re

import numpy as np

from align_keras.interop.efficientnet import coefficients
from align_keras.interop.efficientnet import torch_efficientnet_links
from align_keras.interop.foreign_weights import ForeignWeights
from align_keras.interop.links import assign
from align_keras.models import EfficientNetBackbone
from align_keras.preprocessing import AlignImageConverter

# timm's ports of the original weights; its other EfficientNets pad
# symmetrically.
_ARCHITECTURE = re.compile(r"tf_efficientnet_(b[0-7]|l2)(\.|_|$)")
# The head convolution with its normalisation, the classifier, and the step
# counters of batch normalisation.
_UNUSED = re.compile(r"(conv_head|bn2|classifier)\.|.*\.num_batches_tracked$")


class Timm(ForeignWeights):
    """A directory of a timm model, with config.json and model.safetensors.

    The head convolution and the classifier are dropped. Images are prepared
    with the size, crop, mean and standard deviation in timm's config, but
    resized bilinearly and without keeping their aspect ratio.
    """

    model_class = EfficientNetBackbone

    def arguments(self):
        architecture = self.config["architecture"]
        match = _ARCHITECTURE.match(architecture)
        if match is None:
            raise ValueError(
                f"`architecture` in `{self.directory}/config.json` must be "
                "one of tf_efficientnet_b0 to b7 and tf_efficientnet_l2. "
                f"Received: {architecture!r}."
            )
        width, depth = coefficients(match[1])
        return {
            "width_coefficient": width,
            "depth_coefficient": depth,
            "padding": "same",
        }

    def load_weights(self, model):
        tensors = self.tensors()
        assign(model, links(model), tensors, unused=is_unused)

    def parts(self):
        known = {"mean", "std"} <= set(self._pretrained())
        return ["image_converter"] if known else []

    def image_converter(self, **kwargs):
        if not self.parts():
            return super().image_converter()
        config = self._pretrained()
        mean = np.asarray(config["mean"], "float64")
        std = np.asarray(config["std"], "float64")
        size = kwargs.get("image_size", config.get("input_size", [3])[1:])
        return AlignImageConverter(
            **{
                **self._sizes(size or 289),
                "scale": (1 / (255 * std)).tolist(),
                "offset": (-mean / std).tolist(),
                **kwargs,
            }
        )

    def _sizes(self, image_size):
        """Return the crop size and, if the config has it, the resize size."""
        sides = [int(side) for side in np.broadcast_to(image_size, 2)]
        share = self._pretrained().get("crop_pct")
        if share is None:
            return {"image_size": tuple(sides)}
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ValueError(
                f"`crop_pct` in `{self.directory}/config.json` must be above "
                f"0 and at most 1. Received: {share!r}."
            )
        return {
            "image_size": tuple(sides),
            "resize_size": tuple(round(side / share) for side in sides),
        }

    def _pretrained(self):
        return self.config.get("pretrained_cfg") or self.config


def links(backbone):
    """Link a backbone with timm's names."""
    return torch_efficientnet_links(
        backbone, ("conv_stem", "bn1"), _block_names
    )


def is_unused(name):
    """Tell whether our backbone does not need a tensor of timm's."""
    return _UNUSED.match(name) is not None


def _block_names(index, block):
    stage, number = re.fullmatch(r"stage(\d+)_block(\d+)", block.name).groups()
    prefix = f"blocks.{int(stage) - 1}.{int(number) - 1}"
    # Without the expansion, timm numbers the remaining layers from one.
    if block.expansion_ratio == 1:
        names = ("conv_dw", "bn1", "conv_pw", "bn2")
    else:
        names = ("conv_dw", "bn2", "conv_pwl", "bn3")
    parts = ("depthwise_conv", "depthwise_bn", "project_conv", "project_bn")
    return {
        "expand_conv": f"{prefix}.conv_pw",
        "expand_bn": f"{prefix}.bn1",
        "squeeze_reduce": f"{prefix}.se.conv_reduce",
        "squeeze_expand": f"{prefix}.se.conv_expand",
        **{
            part: f"{prefix}.{name}"
            for part, name in zip(parts, names, strict=True)
        },
    }
