"""Weights that do not fit are refused, with names."""

import json
import shutil

import hostile
import keras
import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors.numpy")

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.interop import convert
from align_keras.interop.safetensors_file import SafetensorsFiles


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def change_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = safetensors.load_file(path)
    change(tensors)
    safetensors.save_file(tensors, path, metadata={"format": "pt"})


def test_tensors_that_do_not_fit_are_named_in_one_error(copy, monkeypatch):
    def change(tensors):
        del tensors["text_projection.bias"]
        tensors["vision_model.new"] = np.zeros((2, 3), "float32")
        tensors["temperature"] = np.zeros(1, "float32")
        name = "text_model.embeddings.word_embeddings.weight"
        tensors[name] = tensors[name][:-1]

    change_tensors(copy, change)
    assigned = []
    monkeypatch.setattr(
        keras.Variable, "assign", lambda *args: assigned.append(args)
    )
    with pytest.raises(ValueError) as error:
        AlignDualEncoder.from_preset(str(copy))
    message = str(error.value)
    for words in (
        str(copy),
        "missing tensors: text_projection.bias (96,)",
        "unexpected tensors: vision_model.new (2, 3)",
        "temperature is (1,) there and () in the model",
        "text_model.embeddings.word_embeddings.weight is (",
    ):
        assert words in message
    assert not assigned


def test_a_weight_that_the_checkpoint_lacks_is_not_left_random(directory):
    with pytest.raises(ValueError, match="nothing for .*image_projection/kern"):
        AlignDualEncoder.from_preset(str(directory), embedding_dim=24)


def test_older_files_with_position_ids_are_read_and_kept(copy, converted):
    ids = np.arange(70)[None]
    name = "text_model.embeddings.position_ids"
    change_tensors(copy, lambda tensors: tensors.update({name: ids}))
    model = AlignDualEncoder.from_preset(str(copy))
    np.testing.assert_array_equal(model.carried.tensors[name], ids)
    np.testing.assert_array_equal(
        model.text_projection.kernel, converted.text_projection.kernel
    )


def test_quantised_tensors_are_refused(copy):
    def change(tensors):
        name = "text_projection.weight"
        tensors[name] = tensors[name].astype("int8")

    change_tensors(copy, change)
    with pytest.raises(ValueError, match="text_projection.weight is of .* I8"):
        AlignDualEncoder.from_preset(str(copy))


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model-1-of-2.bin"])
def test_other_pickles_are_not_opened(copy, name):
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(b"whatever")
    with pytest.raises(ValueError, match=f"{name}.*save_pretrained"):
        AlignDualEncoder.from_preset(str(copy))
    (copy / name).unlink()
    with pytest.raises(ValueError, match="no model.safetensors"):
        AlignDualEncoder.from_preset(str(copy))


def test_damaged_files_are_named(copy, tmp_path, reference):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match="model.safetensors` is not a complete"
    ):
        AlignDualEncoder.from_preset(str(copy))
    shards = tmp_path / "shards"
    reference.save_pretrained(shards, max_shard_size="300KB")
    index = shards / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["temperature"] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="next to it: ../secret"):
        AlignDualEncoder.from_preset(str(shards))
    content["weight_map"]["temperature"] = "model-9.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not there: model-9.safetensors"):
        AlignDualEncoder.from_preset(str(shards))
    del content["weight_map"]["temperature"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="disagree about the tensors temp"):
        AlignDualEncoder.from_preset(str(shards))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_config", "strides", [1, 2, 2, 2, 2, 2, 1]),
        ("vision_config", "depthwise_padding", [3]),
        ("vision_config", "batch_norm_eps", 1e-5),
        ("vision_config", "hidden_act", "mish"),
        ("text_config", "layer_norm_eps", 1e-5),
        ("text_config", "hidden_act", "mish"),
        ("vision_config", "width_coefficient", "wide"),
        ("vision_config", "drop_connect_rate", None),
        ("text_config", "hidden_size", [32]),
        (None, "temperature_init_value", "hot"),
        (None, "projection_dim", 64),
        (None, "model_type", "clip"),
    ],
)
def test_networks_that_we_lack_are_refused(part, field, value, copy):
    config = json.loads((copy / "config.json").read_text())
    (config[part] if part else config)[field] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"`{field}`.*config.json"):
        AlignDualEncoder.from_preset(str(copy))


def test_a_tokenizer_beyond_the_table_is_refused(copy):
    """A vocabulary of one token more than there are rows; fewer are padded."""
    tokens = AlignDualEncoder.from_preset(str(copy)).preprocessor.tokenizer
    tokens = tokens.get_vocabulary()
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("\n".join(tokens[:-1]) + "\n", "utf-8")
    assert AlignDualEncoder.from_preset(str(copy)).preprocessor is not None
    (copy / "vocab.txt").write_text("\n".join([*tokens, "more"]), "utf-8")
    words = f"has {len(tokens) + 1} tokens.* only {len(tokens)} "
    with pytest.raises(ValueError, match=words):
        AlignDualEncoder.from_preset(str(copy))


def test_every_wrong_tensor_is_named(copy):
    names = [f"new.{i}" for i in range(40)]
    array = np.zeros(1, "float32")
    change_tensors(
        copy, lambda tensors: tensors.update({name: array for name in names})
    )
    with pytest.raises(ValueError) as error:
        AlignDualEncoder.from_preset(str(copy))
    assert all(f"{name} (1,)" in str(error.value) for name in names)


def test_wrong_class_and_same_directory_are_refused(directory, converted):
    with pytest.raises(ValueError, match="AlignDualEncoder.from_preset"):
        BertTextEncoder.from_preset(str(directory))
    with pytest.raises(ValueError, match="the source itself"):
        convert(directory, directory)
    with pytest.raises(ValueError, match="`to` must be"):
        convert(directory, "elsewhere", to="onnx")


@pytest.mark.parametrize("name", sorted(hostile.safetensors_files()))
def test_headers_that_lie_are_refused(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile.safetensors_files()[name])
    with pytest.raises(ValueError, match=f"`{path}` is not a complete"):
        SafetensorsFiles(tmp_path)
