"""Other models in the harness: SavedModels, and KerasHub's CLIP and SigLIP."""

import io
from types import SimpleNamespace

import keras
import keras_hub
import numpy as np
import pytest
from PIL import Image
from tiny_align import image_file
from tiny_align import tiny_align

from align_keras.embedding import as_embedder
from align_keras.embedding import embed_images
from align_keras.embedding import embed_texts
from align_keras.embedding import load_embedder
from align_keras.embedding import loading
from align_keras.embedding.embedder import keras_hub_embedder

TEXTS = ["a red bus", "the blue dog", "a house"]


@pytest.fixture(scope="module")
def model():
    return tiny_align()


@pytest.fixture(scope="module")
def photos():
    sizes = [(60, 45), (35, 80), (64, 64)]
    return [image_file(i, size) for i, size in enumerate(sizes)]


def vectors_of(embedder, photos):
    return (
        embed_images(embedder, photos, 2, progress=False),
        embed_texts(embedder, TEXTS, 2, progress=False),
    )


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_words_come_from_before_the_projection(model):
    words = as_embedder(model).words(["red", "bus"])
    tokens = model.preprocessor.tokenize(["red", "bus"])
    sequence = model.text_encoder(tokens)["sequence_output"]
    assert words.shape == (2, 32)
    np.testing.assert_allclose(words, sequence[:, 0], rtol=0, atol=1e-5)


def test_presets_and_saved_models_give_the_same_vectors(
    model, photos, tmp_path
):
    model.save_to_preset(tmp_path / "preset")
    model.export(str(tmp_path / "served"))
    # TensorFlow has no decoder for the last one.
    photos = [*photos, image_file(3, (50, 40), "TIFF")]
    expected = vectors_of(model, photos)
    pixels = np.full((40, 50, 3), 90, "uint8")
    prints = set()
    for name in ("preset", "served"):
        embedder = load_embedder(str(tmp_path / name))
        prints.add(embedder.fingerprint)
        for found, rows in zip(
            vectors_of(embedder, photos), expected, strict=True
        ):
            np.testing.assert_allclose(found, rows, rtol=0, atol=2e-5)
        rows = embed_images(embedder, [pixels], 2, progress=False)
        np.testing.assert_allclose(
            rows[0], numpy(model.encode_image(pixels[None]))[0], atol=2e-5
        )
        with pytest.raises(ValueError, match="Image 0 is not readable"):
            embed_images(embedder, [b"nothing"], progress=False)
    assert len(prints) == 2 and None not in prints


def clip():
    pieces = "r e d b u s re bu d</w> s</w> a</w> red</w> bus</w>".split()
    tokens = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = keras_hub.tokenizers.CLIPTokenizer(
        {token: place for place, token in enumerate(tokens)},
        ["r e", "re d</w>", "b u", "bu s</w>"],
    )
    vision = keras_hub.models.CLIPVisionEncoder(
        8, 16, 1, 2, 32, image_shape=(32, 32, 3)
    )
    text = keras_hub.models.CLIPTextEncoder(20, 16, 16, 1, 2, 32)
    converter = keras_hub.layers.CLIPImageConverter(image_size=(32, 32))
    return (
        keras_hub.models.CLIPBackbone(vision, text, 12),
        keras_hub.models.CLIPPreprocessor(
            tokenizer, converter, sequence_length=16
        ),
    )


def siglip():
    class Letters(keras_hub.tokenizers.Tokenizer):
        """Stands for SentencePiece, whose model would have to be trained."""

        start_token_id, end_token_id, pad_token_id = 1, 1, 0

        def tokenize(self, inputs):
            import tensorflow as tf

            return tf.strings.unicode_decode(inputs, "UTF-8") % 19

        def vocabulary_size(self):
            return 20

    vision = keras_hub.models.SigLIPVisionEncoder(
        8, 16, 1, 2, 32, image_shape=(32, 32, 3)
    )
    text = keras_hub.models.SigLIPTextEncoder(20, 16, 16, 1, 2, 32)
    backbone = keras_hub.models.SigLIPBackbone(vision, text)
    converter = keras_hub.layers.SigLIPImageConverter(image_size=(32, 32))
    return backbone, keras_hub.models.SigLIPPreprocessor(
        Letters(), converter, sequence_length=64
    )


@pytest.mark.parametrize("make", [clip, siglip])
def test_keras_hub_models_are_measured_alike(make, photos):
    keras.utils.set_random_seed(0)
    backbone, preprocessor = make()
    embedder = keras_hub_embedder(backbone, preprocessor, "other")
    images, texts = vectors_of(embedder, photos)
    for row, photo in zip(images, photos, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
        inputs = preprocessor.image_converter(pixels[None])
        expected = unit(numpy(backbone.get_vision_embeddings(inputs)))
        np.testing.assert_allclose(row, expected[0], rtol=0, atol=1e-5)
    blank = np.zeros((3, 32, 32, 3), "uint8")
    tokens = preprocessor({"prompts": TEXTS, "images": blank})
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    rows = numpy(backbone.get_text_embeddings(tokens["token_ids"]))
    np.testing.assert_allclose(texts, unit(rows), rtol=0, atol=1e-5)


def test_floats_are_refused_where_they_mean_nothing(model, tmp_path):
    floats = np.zeros((8, 8, 3), "float32")
    for embedder in (
        keras_hub_embedder(*clip()),
        SimpleNamespace(read=loading._read_file),
    ):
        with pytest.raises(TypeError, match="uint8.*dtype=float32"):
            embedder.read(floats)


def test_a_handle_stands_for_the_version_that_it_has(tmp_path, monkeypatch):
    version = "1"

    def cached(handle, name):
        return tmp_path / "snapshots" / version / name

    monkeypatch.setattr(loading, "handle_file", cached)
    found = {
        loading.model_fingerprint(handle)
        for handle in ("hf://a-b/c", "hf://a/b-c", "kaggle://a/b/keras/c")
    }
    version = "2"
    found.add(loading.model_fingerprint("hf://a/b-c"))
    assert len(found) == 4 and None not in found
    # An architecture has other weights each time.
    assert loading.model_fingerprint("align_b7_bert_base") is None
