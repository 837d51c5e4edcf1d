"""Load an image encoder alone, to compare images with images."""

import keras

from align_keras import models
from align_keras.models import presets
from align_keras.preprocessing import AlignImageConverter


def load_image_encoder(preset):
    """Load only the image encoder of a preset.

    Args:
        preset: string. A preset with weights, of an `AlignDualEncoder` or of
            an image tower alone.

    Returns:
        A callable that takes a list of images (arrays, files, bytes) and
        returns a tensor of shape `(images, dim)`.

    Raises:
        ValueError: There is no such preset, or it has no weights.
    """
    path = presets.find_preset(preset)
    if not presets.has_weights(path):
        raise ValueError(
            f"The preset `{preset}` is an architecture without weights, which "
            "cannot tell images apart; pass one with weights as `model`."
        )
    kind = "AlignDualEncoder"
    if presets.foreign_weights(path) is None:
        kind = presets.load_config(path)["class_name"]
    if kind not in ("EfficientNetBackbone", "EfficientNetL2Backbone"):
        return models.AlignDualEncoder.from_preset(preset).encode_image
    tower = getattr(models, kind).from_preset(preset)
    converter = AlignImageConverter()

    def encode(images):
        features = tower(converter.load(images), training=False)
        return keras.ops.mean(features, axis=(1, 2))

    return encode
