"""The examples run as they stand, on images of one color each."""

import json
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from colors import COLORS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras.data import open_records
from align_keras.data import pack

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPT = Path(__file__).with_name("train_on_replicas.py")


def words_of(options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a vocabulary, and a preset without preprocessor."""
    folder = tmp_path_factory.mktemp("examples")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    keras.utils.set_random_seed(0)
    tiny_model(len(VOCABULARY)).save_to_preset(str(folder / "preset"))
    return folder


@pytest.mark.thorough
def test_train_on_your_photos(folder, tmp_path, capsys):
    model = AlignDualEncoder.from_preset(folder / "preset")
    model.preprocessor = AlignPreprocessor(
        AlignTokenizer(VOCABULARY), AlignImageConverter(image_size=32)
    )
    preset = tmp_path / "preset"
    model.save_to_preset(str(preset))
    main = runpy.run_path(str(EXAMPLES / "train_on_your_photos.py"))["main"]
    output = tmp_path / "output"
    options = {
        "output": output,
        "preset": preset,
        "steps": 12,
        "batch-size": 6,
        "image-size": 32,
        "checkpoint-every": 6,
        "learning-rate": 0.02,
    }
    command = [str(folder / "photos"), *words_of(options)]
    metrics = main(command)

    said = capsys.readouterr().out
    # A quarter of so few.
    for words in ("Held out 4 images", "step     12/12", "(chance 100.0%)"):
        assert words in said
    assert "Recall@1, caption of an image" in said and "(chance 25.0%)" in said
    held_out = output / "packed" / "held_out"
    kept, aside = (
        {record["key"] for record in open_records(path)}
        for path in (output / "packed", held_out)
    )
    assert kept | aside == set(COLORS) and not kept & aside
    assert metrics["images"] == len(aside) == 4
    # What was exported is what was measured.
    served = tf.saved_model.load(str(output / "saved_model"))
    records = list(open_records(held_out))
    answers = served.signatures["serving_default"](
        image_bytes=tf.constant([record["image"] for record in records]),
        texts=tf.constant([record["captions"][0] for record in records]),
    )
    hits = np.argmax(answers["similarities"], axis=1) == np.arange(4)
    assert hits.mean() == metrics["image_to_text_recall@1"]

    again = main(command)
    assert "This run is finished" in capsys.readouterr().out
    assert again == pytest.approx(metrics)


@pytest.fixture
def architecture(folder, tmp_path):
    """The preset without its weights."""
    architecture = tmp_path / "preset"
    architecture.mkdir()
    for name in ("config.json", "metadata.json"):
        shutil.copy(folder / "preset" / name, architecture)
    return architecture


def test_real_photographs(architecture, tmp_path, data_directory, capsys):
    """Of all sizes and kinds, with a vocabulary from their captions."""
    main = runpy.run_path(str(EXAMPLES / "train_on_your_photos.py"))["main"]
    options = {
        "output": tmp_path / "output",
        "preset": architecture,
        "steps": 3,
        "batch-size": 16,
        "image-size": 32,
    }
    metrics = main([str(data_directory / "photos"), *words_of(options)])
    # A tenth of 167.
    assert "Held out 17 images" in capsys.readouterr().out
    assert metrics["images"] == metrics["texts"] == 17
    assert metrics["images_skipped"] == 0
    model = AlignDualEncoder.from_preset(tmp_path / "output" / "model")
    assert "bull" in model.preprocessor.tokenizer.detokenize(
        model.preprocessor.tokenizer("bullfrog")
    )


def test_no_photos_are_held_out(
    folder, architecture, tmp_path, monkeypatch, capsys
):
    main = runpy.run_path(str(EXAMPLES / "train_on_your_photos.py"))["main"]
    monkeypatch.setattr(AlignDualEncoder, "export", lambda model, path: None)
    options = {
        "output": tmp_path / "output",
        "preset": architecture,
        "steps": 2,
        "batch-size": 4,
        "image-size": 32,
        "hold-out": 0,
    }
    assert main([str(folder / "photos"), *words_of(options)]) == {}
    assert "Exported to" in capsys.readouterr().out


@pytest.mark.multiprocess
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a strategy of TensorFlow"
)
def test_tpu_training_on_two_replicas(folder, run_script):
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions, records_per_shard=8)
    result = run_script(
        SCRIPT,
        EXAMPLES / "tpu_training.py",
        folder,
        timeout=180,
        KERAS_BACKEND="tensorflow",
        PYTHONPATH=str(SCRIPT.parents[1]),
    )
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["replicas"] == 2
    assert report["iterations"] == [4, 4]
    assert report["epochs"] == [[0, 1], [1]]
    # Going on from step 2 ends where the whole run ended.
    for name, difference in report["differences"].items():
        assert difference < 1e-5, name
    before = AlignDualEncoder.from_preset(folder / "preset")
    model = AlignDualEncoder.from_preset(folder / "whole_model")
    moved = [
        np.abs(np.subtract(ours, theirs)).max()
        for ours, theirs in zip(before.weights, model.weights, strict=True)
    ]
    assert max(moved) > 1e-3
    # The recipe mirrors no images, unlike the converter by itself.
    assert not model.preprocessor.image_converter.mirror
    # Weights stay in float32 under mixed precision, and embeddings are too.
    assert {weight.dtype for weight in model.weights} == {"float32"}
    vectors = np.asarray(model.encode_text([f"all {c}" for c in COLORS]))
    assert vectors.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    events = list((folder / "whole" / "tensorboard" / "train").iterdir())
    assert len(events) == 1
