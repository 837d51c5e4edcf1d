"""Models behind `hf://`, read from a hub that speaks as Hugging Face's does."""

import shutil
import time

import hub_server
import numpy as np
import pytest
import torch
from tiny_align import image_file
from tiny_align import tiny_align

pytest.importorskip("transformers", reason="It makes what is read")

from align_keras import AlignDualEncoder
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import list_pretrained_presets
from align_keras.cli import main
from align_keras.models import presets


@pytest.fixture(scope="module")
def hub():
    with hub_server.hub_running() as hub:
        yield hub


@pytest.fixture(autouse=True)
def client(hub, monkeypatch, tmp_path):
    hub.repositories.clear()
    hub.asked.clear()
    hub_server.use(hub, monkeypatch, tmp_path / "hub")


def only_pickled(directory, state, legacy):
    (directory / "model.safetensors").unlink(missing_ok=True)
    torch.save(
        state,
        directory / "pytorch_model.bin",
        _use_new_zipfile_serialization=not legacy,
    )


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def same_weights(model, other):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_repository_of_pickled_weights_is_read(
    hub, copy, reference, converted, legacy
):
    only_pickled(copy, reference.state_dict(), legacy)
    (copy / "unrelated.bin").write_bytes(b"large")
    hub.add("kakaobrain/align-base", copy)
    model = AlignDualEncoder.from_preset("align_b7_bert_base_coyo700m")
    same_weights(model, converted)
    assert model.preprocessor.tokenizer is not None
    names = [name for _, name in hub.asked]
    assert "unrelated.bin" not in names
    assert names.count("pytorch_model.bin") == 1


def test_shards_are_downloaded_file_by_file(hub, copy, reference, converted):
    (copy / "model.safetensors").unlink()
    reference.save_pretrained(copy, max_shard_size="300KB")
    (copy / "pytorch_model.bin").write_bytes(b"not asked for")
    hub.add("me/shards", copy)
    same_weights(AlignDualEncoder.from_preset("hf://me/shards"), converted)
    names = [name for _, name in hub.asked]
    assert "pytorch_model.bin" not in names
    assert sum(name.endswith(".safetensors") for name in names) > 2


def test_what_is_in_the_cache_needs_no_network(
    hub, directory, converted, monkeypatch
):
    hub.add("me/align", directory)
    AlignDualEncoder.from_preset("hf://me/align")
    hub.asked.clear()
    nowhere = "http://hub.invalid"
    monkeypatch.setattr(hub_server.constants, "ENDPOINT", nowhere)
    hub_server.forget()
    same_weights(AlignDualEncoder.from_preset("hf://me/align"), converted)
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="me/other.*cache.*hub.invalid"):
        AlignDualEncoder.from_preset("hf://me/other")
    # One question, and none of the client's own repetitions.
    assert time.perf_counter() - start < 30
    assert not hub.asked


@pytest.mark.parametrize("known", [False, True])
def test_half_a_preset_in_the_cache_is_not_loaded(
    known, hub, monkeypatch, tmp_path
):
    """Whether the client knows what is missing, or has only seen a part."""
    tiny_align().save_to_preset(tmp_path / "preset")
    hub.add("me/keras", tmp_path / "preset")
    if known:
        AlignDualEncoder.from_preset("hf://me/keras")
        (weights,) = (tmp_path / "hub").rglob("model.weights.h5")
        weights.unlink()
    else:
        AlignTokenizer.from_preset("hf://me/keras")
        assert not list((tmp_path / "hub").rglob("*.weights.h5"))
    nowhere = "http://hub.invalid"
    monkeypatch.setattr(hub_server.constants, "ENDPOINT", nowhere)
    hub_server.forget()
    with pytest.raises(
        ConnectionError, match="some files of .*hf download me/"
    ):
        AlignDualEncoder.from_preset("hf://me/keras")


def test_what_is_carried_comes_back(hub, converted, tmp_path):
    converted.save_to_preset(tmp_path / "preset")
    hub.add("me/keras", tmp_path / "preset")
    model = AlignDualEncoder.from_preset("hf://me/keras")
    same_weights(model, converted)
    assert model.carried.config == converted.carried.config
    assert model.carried.tensors.keys() == converted.carried.tensors.keys()


def test_without_a_network_a_command_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    hub_server.forget()
    image = tmp_path / "x.png"
    image.write_bytes(image_file(0, form="PNG"))
    arguments = ["classify", image, "a", "b", "--model", "hf://me/other"]
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert "HF_HUB_OFFLINE is set" in error
    assert "hf download me/other" in error


def test_a_repository_that_is_not_there_is_named(hub, directory):
    with pytest.raises(
        ValueError, match="no public repository `me/nothing`.*hf auth"
    ):
        AlignDualEncoder.from_preset("hf://me/nothing")
    with pytest.raises(ValueError, match="no public repository `a/b/c`"):
        AlignDualEncoder.from_preset("hf://a/b/c")
    hub.add("me/align", directory)
    del hub.repositories["me/align"]["model.safetensors"]
    with pytest.raises(
        ValueError, match="no weights that can be read.*pytorch"
    ):
        AlignDualEncoder.from_preset("hf://me/align")


def test_a_bit_that_flips_in_the_cache_is_noticed(hub, directory, tmp_path):
    hub.add("me/align", directory)
    AlignDualEncoder.from_preset("hf://me/align")
    (weights,) = (tmp_path / "hub").rglob("model.safetensors")
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.resolve().write_bytes(contents)
    hub_server.forget()
    with pytest.raises(ValueError, match="model.safetensors` is damaged"):
        AlignDualEncoder.from_preset("hf://me/align")
    weights.resolve().unlink()
    weights.unlink()
    hub_server.forget()
    AlignDualEncoder.from_preset("hf://me/align")


def test_names_lead_to_handles():
    for name, row in list_pretrained_presets().items():
        assert presets.find_preset(name) == row["handle"]
    with pytest.raises(ValueError, match="mean `bert_mini_uncased`"):
        BertTextEncoder.from_preset("bert_mini_uncasd")
