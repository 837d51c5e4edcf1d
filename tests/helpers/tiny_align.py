"""A whole ALIGN model of a few thousand parameters, and images for it."""

import io

import keras
import numpy as np
from PIL import Image

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone

WORDS = "a the red blue green bus dog house on near caf ##e ##s , .".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def tiny_align(dtype="float32", seed=0):
    """Make a model with its preprocessor."""
    keras.utils.set_random_seed(seed)
    model = AlignDualEncoder(
        EfficientNetBackbone(0.2, 0.2, dtype=dtype),
        BertTextEncoder(len(VOCABULARY), 1, 2, 32, 64, dtype=dtype),
        preprocessor=AlignPreprocessor(
            AlignTokenizer(VOCABULARY),
            AlignImageConverter(image_size=33),
            sequence_length=16,
        ),
        dtype=dtype,
    )
    # Fresh biases are zeros, behind which a lost weight could hide, and fresh
    # statistics and small kernels give every input nearly the same vector.
    rng = np.random.default_rng(seed)
    text_weights = {weight.path for weight in model.text_encoder.weights}
    for weight in model.weights:
        # A share of more than 1 would make variances negative.
        if weight.path.endswith("moving_share"):
            continue
        noise = rng.uniform(0.7, 1.3, weight.shape)
        shift = 0.1 if weight.path.endswith(("bias", "beta")) else 0.0
        scale = 8.0 if weight.path in text_weights else 1.0
        value = keras.ops.convert_to_numpy(weight)
        weight.assign((value * scale + shift) * noise)
    photos = [image_file(100 + number) for number in range(8)]
    images = model.preprocessor.image_converter.load(photos)
    for layer in model.image_encoder._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.1
    for _ in range(2):
        model.image_encoder(images, training=True)
    return model


def many_scans(count):
    """A progressive JPEG that says its last scan again and again."""
    buffer = io.BytesIO()
    photo = Image.open(io.BytesIO(image_file(0)))
    photo.save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    more = count - content.count(b"\xff\xda")
    return content[:-2] + more * scan + content[-2:]


def image_file(seed, size=(60, 45), form="JPEG", mode="RGB"):
    """Make the bytes of a smooth image."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (6, 6, 3), dtype="uint8")
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, form)
    return buffer.getvalue()
