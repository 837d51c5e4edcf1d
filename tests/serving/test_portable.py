import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tiny_align import VOCABULARY

from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras.cli import main
from align_keras.serving import export_towers
from align_keras.serving import open_tower
from align_keras.serving import portable

TEXTS = ["a red bus", "the dog on a house near the cafe", ""]


@pytest.fixture(scope="module")
def inputs(model):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 33, 33, 3))
    tokens = {
        key: keras.ops.convert_to_numpy(value)
        for key, value in model.preprocessor.tokenize(TEXTS).items()
    }
    return {
        "image_encoder": {"images": images.astype("float32")},
        "text_encoder": tokens,
    }


@pytest.fixture(scope="module")
def expected(model, inputs):
    images = model.encode_image(inputs["image_encoder"]["images"])
    texts = model.encode_text(inputs["text_encoder"])
    return {
        "image_encoder": keras.ops.convert_to_numpy(images),
        "text_encoder": keras.ops.convert_to_numpy(texts),
    }


@pytest.mark.parametrize(
    ("form", "suffixes"), [("onnx", ["onnx"]), ("openvino", ["bin", "xml"])]
)
def test_runtimes(form, suffixes, folder, inputs, expected, tmp_path, capsys):
    command = ["export", "--model", str(folder / "preset"), "--json"]
    command += ["--format", form, "--output", str(tmp_path / form)]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [
        *(f"image_encoder.{suffix}" for suffix in suffixes),
        "preprocessing.json",
        *(f"text_encoder.{suffix}" for suffix in suffixes),
        "vocabulary.txt",
    ]
    for name, arrays in inputs.items():
        encode = open_tower(tmp_path / form / f"{name}.{suffixes[-1]}")
        for rows in (3, 1):
            part = {key: value[:rows] for key, value in arrays.items()}
            vectors = encode(part)
            np.testing.assert_allclose(
                vectors, expected[name][:rows], rtol=0, atol=1e-5
            )


def test_litert(model, inputs, expected, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    export_towers(model, tmp_path / "litert", "litert")
    for name, arrays in inputs.items():
        path = tmp_path / "litert" / f"{name}.tflite"
        run = Interpreter(str(path)).get_signature_runner()
        for rows in (3, 1):
            part = {key: value[:rows] for key, value in arrays.items()}
            vectors = run(**part)["embeddings"]
            np.testing.assert_allclose(
                vectors, expected[name][:rows], rtol=0, atol=1e-5
            )
    settings = json.loads((tmp_path / "litert/preprocessing.json").read_text())
    assert settings["image"]["central_crop"] == [33, 33]
    assert settings["image"]["scale"] == 1 / 127.5
    assert settings["text"]["sequence_length"] == 16
    vocabulary = (tmp_path / "litert/vocabulary.txt").read_text().split("\n")
    tokenizer = model.preprocessor.tokenizer
    assert vocabulary.index("bus") == tokenizer.token_to_id("bus")


@pytest.mark.parametrize(
    ("part", "renamed", "irrelevant"),
    [
        (
            "image",
            {"image_size": "central_crop", "resize_size": "resize"},
            {"fast", "mirror"},
        ),
        (
            "text",
            {},
            # The vocabulary has a file. The others cannot be changed.
            {"vocabulary", "config_file", "split", "special_tokens"},
        ),
    ],
)
def test_preprocessing_is_described_whole(
    tmp_path, monkeypatch, part, renamed, irrelevant
):
    """A consumer that follows the file must get what the model gets."""
    model = SimpleNamespace(
        preprocessor=AlignPreprocessor(
            AlignTokenizer(
                VOCABULARY,
                lowercase=False,
                strip_accents=False,
                split_on_cjk=False,
                special_tokens_in_strings=True,
            ),
            AlignImageConverter(
                image_size=33,
                resize_size=(40, 35),
                antialias=True,
                scale=[0.5, 0.25, 0.125],
                offset=2.0,
            ),
            sequence_length=16,
        ),
    )
    model.require_preprocessor = lambda: model.preprocessor
    for name, value in (
        ("computing_dtypes", {1: "float32"}),
        ("_tower_functions", {}),
    ):
        monkeypatch.setattr(portable, name, lambda model, value=value: value)
    # Of an earlier export of another model, and of the user.
    for name in (
        "merges.txt",
        "text_encoder.tflite",
        "image_encoder.bin",
        "notes.txt",
    ):
        (tmp_path / name).touch()
    export_towers(model, tmp_path, "onnx")
    assert {file.name for file in tmp_path.iterdir() if file.suffix} == {
        "notes.txt",
        "preprocessing.json",
        "vocabulary.txt",
    }
    settings = json.loads((tmp_path / "preprocessing.json").read_text())[part]
    preprocessor = model.preprocessor
    config = {
        "image": preprocessor.image_converter,
        "text": preprocessor.tokenizer,
    }[part].get_config()
    if part == "text":
        assert settings["special_tokens"] == VOCABULARY[:5]
        config["sequence_length"] = preprocessor.sequence_length
    for name in set(config) - {"name", "trainable", "dtype"} - irrelevant:
        expected = json.loads(json.dumps(config[name]))
        assert settings[renamed.get(name, name)] == expected, name


def test_refusals(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`form` must be one of.*'coreml'"):
        export_towers(model, tmp_path / "out", "coreml")
    with monkeypatch.context() as patch:
        patch.setattr(
            portable, "computing_dtypes", lambda model: {1: "bfloat16"}
        )
        with pytest.raises(ValueError, match="float32. Received: bfloat16"):
            export_towers(model, tmp_path / "out", "onnx")
    with monkeypatch.context() as patch:
        patch.setattr(keras.config, "backend", lambda: "jax")
        with pytest.raises(ValueError, match="KERAS_BACKEND to tensorflow"):
            export_towers(model, tmp_path / "out", "litert")
    with pytest.raises(ValueError, match="ends in.*`a.tflite`"):
        open_tower("a.tflite")
    assert not (tmp_path / "out").exists()
