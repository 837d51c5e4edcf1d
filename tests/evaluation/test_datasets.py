"""Data sets on disk, as the evaluations read them."""

import json
import sys

import pytest
from seer import Seer
from seer import write_root
from tiny_align import tiny_align

from align_keras.classes import read_classes
from align_keras.cli import main
from align_keras.evaluation import compare_results
from align_keras.evaluation import datasets
from align_keras.evaluation.cxc_data import read_sentences
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.io.optional import OptionalModule


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def quiet(**options):
    return {"progress": False, "samples": 50, "batch_size": 3, **options}


def test_karpathy_takes_five_captions_and_finds_images(root, tmp_path):
    coco = root / "mscoco"
    file = coco / "dataset_coco.json"
    data = datasets.karpathy(file, coco / "images", name="mscoco")
    examples = list(data.examples())
    assert len(examples) == data.total == 4
    assert all(len(texts) == 5 for _, _, texts in examples)
    both = datasets.karpathy(file, coco / "images", "test,restval")
    assert both.total == 5
    flat = coco / "images" / "val2014"
    assert list(datasets.karpathy(file, flat).examples())[0][1].is_file()
    with pytest.raises(ValueError, match="no image of the split 'dev'"):
        datasets.karpathy(file, coco / "images", "dev")
    with pytest.raises(FileNotFoundError, match="no image `val2014/COCO"):
        list(datasets.karpathy(file, tmp_path).examples())

    result = measure_retrieval(Seer().embedder(), data, **quiet())
    assert (result["images"], result["texts"]) == (4, 20)
    assert result["dataset"] == "mscoco" and result["model"] == "seer"
    low, high = result["intervals"]["image_to_text_recall@5"]
    assert low <= result["image_to_text_recall@5"] <= high
    said = describe_result(result)
    assert "ALIGN, zero-shot" in said and "58.6%" in said
    other = json.loads(file.read_text())
    used = [i for i in other["images"] if i["split"] == "test"]
    used[-1]["sentences"][0]["raw"] += " at night"
    (tmp_path / "dataset_coco.json").write_text(json.dumps(other))
    data = datasets.karpathy(
        tmp_path / "dataset_coco.json", coco / "images", name="mscoco"
    )
    reworded = measure_retrieval(Seer().embedder(), data, **quiet())
    with pytest.raises(ValueError, match="same queries.*text_digest"):
        compare_results(result, reworded)
    two = measure_retrieval(Seer().embedder(), data, folds=2, **quiet())
    assert two["dataset"] == "mscoco_2_folds"
    assert two["chance_text_to_image_recall@1"] == 0.5


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"classes": ["a"], "templates": ["none"]}', "hold `{}` once"),
        ('{"classes": ["a", 3]}', "Received for '1': 3"),
        ('"a"', "Received: str"),
        ("[", "is not valid JSON"),
    ],
)
def test_bad_class_names_are_named(content, message, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_classes(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "not in Karpathy's form"),
        ('{"a": 1}', "not in Karpathy's form"),
        ('{"images": ["a"]}', "not in Karpathy's form"),
        ("{", "is not valid JSON"),
    ],
)
def test_malformed_captions_are_named(content, message, root, tmp_path):
    file = tmp_path / "dataset_coco.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"dataset_coco.json` .*{message}"):
        read_sentences(file, ["a:1"])
    with pytest.raises(ValueError, match="dataset_coco.json`"):
        datasets.karpathy(file, tmp_path)


def test_tfds_captions_and_labels_on_mock_data(tmp_path, capsys):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tiny_align().save_to_preset(tmp_path / "model")
    evaluate = ["evaluate", "--model", str(tmp_path / "model"), "--json"]

    # The mock data of MSCOCO would draw the lengths of captions and objects
    # apart from one another, which its own features refuse.
    def captions(builder, **_):
        image = tf.io.encode_jpeg(tf.zeros((8, 8, 3), "uint8"))
        texts = [f"caption {i}" for i in range(6)]
        example = {"image": image, "captions": {"text": texts}}
        return tf.data.Dataset.from_tensors(example)

    with tfds.testing.mock_data(num_examples=7, as_dataset_fn=captions):
        data = datasets.tfds_captions(split="val")
        key, image, texts = next(data.examples())
        assert key == "coco_captions/val/0" and isinstance(image, bytes)
        assert texts == [f"caption {i}" for i in range(5)]
    with tfds.testing.mock_data(num_examples=7):
        labelled = datasets.tfds_labels("food101", "validation")
        assert labelled.class_names[0] == "apple_pie"
        arguments = ["--tfds", "food101", "--data", "validation"]
        command = ["evaluate", "zero-shot", *evaluate[1:], *arguments]
        assert main([*command, "--bootstrap", "20"]) == 0

    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 7 and result["classes"] == 101
    assert result["templates"] == 8


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setattr(
        datasets, "tfds", OptionalModule("tensorflow_datasets", "evaluation")
    )
    with pytest.raises(ImportError, match=r"align-keras\[evaluation\]"):
        datasets.tfds_labels("dtd", "test")


def test_a_class_behind_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "b").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="b` is broken"):
        datasets.class_folders(tmp_path)
