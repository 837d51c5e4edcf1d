"""Towers of other libraries train, are saved, loaded and exported."""

import io

import keras
import keras_hub
import numpy as np
import pytest
from PIL import Image
from without_xla import PLAIN

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import Lamb

tf = pytest.importorskip("tensorflow")

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "bus"]
TEXTS = ["a red bus", "a bus", "red", "bus a red red"]


def keras_hub_towers():
    image_encoder = keras_hub.models.ViTBackbone((32, 32, 3), 8, 1, 2, 16, 32)
    text_encoder = keras_hub.models.DistilBertBackbone(
        len(VOCABULARY), 1, 2, 16, 32, max_sequence_length=16
    )
    return image_encoder, text_encoder


def keras_applications_tower():
    image_encoder = keras.applications.ConvNeXtTiny(
        include_top=False,
        weights=None,
        input_shape=(32, 32, 3),
        include_preprocessing=False,
    )
    text_encoder = BertTextEncoder(len(VOCABULARY), 1, 2, 16, 32)
    return image_encoder, text_encoder


def image_files():
    rng = np.random.default_rng(0)
    for _ in TEXTS:
        coarse = rng.integers(0, 256, (3, 3, 3), dtype="uint8")
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((50, 40)).save(buffer, "PNG")
        yield buffer.getvalue()


@pytest.mark.parametrize(
    ("towers", "jit_compile"),
    # XLA takes its time over ConvNeXt's hundreds of layers.
    [
        (keras_hub_towers, "auto"),
        pytest.param(
            *(keras_applications_tower, PLAIN), marks=pytest.mark.thorough
        ),
    ],
)
def test_foreign_towers(towers, jit_compile, tmp_path):
    keras.utils.set_random_seed(0)
    model = AlignDualEncoder(
        *towers(),
        embedding_dim=24,
        preprocessor=AlignPreprocessor(
            AlignTokenizer(VOCABULARY),
            AlignImageConverter(image_size=32),
            sequence_length=8,
        ),
    )
    files = list(image_files())
    x = {
        "images": model.preprocessor.image_converter.load(files),
        **model.preprocessor.tokenize(TEXTS),
    }
    x = {name: np.asarray(value) for name, value in x.items()}
    before = {
        weight.path: np.array(weight)
        for tower in (model.image_encoder, model.text_encoder)
        for weight in tower.trainable_weights
    }
    model.compile(Lamb(0.01), ContrastiveLoss(0.1), jit_compile=jit_compile)
    history = model.fit(x, batch_size=len(TEXTS), verbose=0).history
    assert np.isfinite(history["loss"][0])
    after = {
        weight.path: np.array(weight)
        for tower in (model.image_encoder, model.text_encoder)
        for weight in tower.trainable_weights
    }
    moved = [path for path in before if (before[path] != after[path]).any()]
    # The keys' biases cancel out in attention; DistilBERT's texts need all
    # else, and the stem of ConvNeXt too.
    assert len(moved) > 0.9 * len(before)

    expected = model.encode_image(files), model.encode_text(TEXTS)
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    for weight, value in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, value)

    # What was loaded and exported gives what was trained.
    again.export(tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
    results = (
        served["encode_image"](image_bytes=tf.constant(files))["embeddings"],
        served["encode_text"](texts=tf.constant(TEXTS))["embeddings"],
    )
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, atol=1e-5)
