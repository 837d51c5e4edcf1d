"""A run is published with its card, and loads from where it was published."""

import re

import hub_server
import numpy as np
import pytest
import yaml
from colors import write_training_inputs

from align_keras import AlignDualEncoder
from align_keras import EfficientNetBackbone
from align_keras.cli import main
from align_keras.embedding import load_embedder
from align_keras.embedding.loading import require_model
from align_keras.serving import upload
from align_keras.serving.model_card import wilson_interval
from align_keras.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps, measured on what it trained on."""
    folder = tmp_path_factory.mktemp("published")
    write_training_inputs(folder)
    train(
        str(folder / "preset"),
        str(folder / "recipe.yaml"),
        str(folder / "packed"),
        folder / "run",
        validation_data=str(folder / "packed"),
        vocabulary=folder / "words.txt",
        strategy="one-device",
        verbose=False,
        steps=3,
        batch_size=4,
    )
    return folder / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.hub_running() as hub:
        hub_server.use(hub, monkeypatch, tmp_path / "hub")
        yield hub


def card_of(hub, name):
    return hub.repositories[name]["README.md"].decode()


def test_a_published_run_loads_again_with_its_card(run, hub, capsys):
    words = ["--license", "apache-2.0", "--language", "en"]
    assert main(["upload", str(run), "hf://me/colors", *words]) == 0
    assert "me/colors" in capsys.readouterr().out
    assert "Bearer hf_test" in hub.tokens
    local = AlignDualEncoder.from_preset(str(run / "model"))
    model = AlignDualEncoder.from_preset("hf://me/colors")
    for ours, theirs in zip(model.weights, local.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        model.encode_text(["red"]), local.encode_text(["red"])
    )
    directory = require_model("hf://me/colors")
    np.testing.assert_allclose(
        load_embedder(directory).texts(["red"]),
        load_embedder(run / "model").texts(["red"]),
        atol=1e-6,
    )
    _, head, text = card_of(hub, "me/colors").split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "apache-2.0"
    assert head["language"] == ["en"]
    assert "align" in head["tags"]
    assert 'from_preset("hf://me/colors")' in text
    assert "| `steps` | 3 |" in text
    assert "| `batch_size` | 4 |" in text
    assert re.search(
        r"recall@1 \| [\d.]+ \([\d.]+ to [\d.]+\) \| [\d.]+ \|", text
    )
    assert "No licence" not in text


def test_a_bit_that_flips_after_the_download_is_noticed(run, hub, tmp_path):
    upload(run, "hf://me/colors")
    AlignDualEncoder.from_preset("hf://me/colors")
    (weights,) = (tmp_path / "hub").rglob("model.weights.h5")
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.resolve().write_bytes(contents)
    hub_server.forget()
    with pytest.raises(ValueError, match="model.weights.h5` is damaged"):
        AlignDualEncoder.from_preset("hf://me/colors")


def test_the_card_that_is_there_is_kept(run, hub, tmp_path):
    preset = tmp_path / "preset"
    AlignDualEncoder.from_preset(str(run / "model")).save_to_preset(str(preset))
    (preset / "README.md").write_text("# mine\n")
    upload(preset, "hf://me/mine")
    assert card_of(hub, "me/mine") == "# mine\n"
    for words in ({"license": "mit"}, {"language": ["en"]}):
        (name,) = words
        with pytest.raises(ValueError, match=f"README.md.*state `{name}`"):
            upload(preset, "hf://me/mine", **words)
    (preset / "README.md").unlink()
    upload(preset, "hf://me/mine")
    assert "No licence has been stated" in card_of(hub, "me/mine")
    assert "## Training" not in card_of(hub, "me/mine")


def test_what_cannot_be_published_is_refused(run, hub, tmp_path, monkeypatch):
    for handle in ("me/colors", "hf://colors", "kaggle://me/a/keras/b"):
        with pytest.raises(ValueError, match="hf://user/name"):
            upload(run, handle)
    with pytest.raises(ValueError, match="not a directory with weights"):
        upload("align_b0_bert_tiny", "hf://me/colors")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="not reached its first checkpoint"):
        upload(tmp_path / "begun", "hf://me/colors")
    EfficientNetBackbone(0.2, 0.2).save_to_preset(str(tmp_path / "tower"))
    with pytest.raises(ValueError, match="is of class `EfficientNetBackbone`"):
        upload(tmp_path / "tower", "hf://me/colors")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "align"}')
    with pytest.raises(ValueError, match="theirs.*add a README.md"):
        upload(tmp_path / "theirs", "hf://me/colors")
    preset = tmp_path / "preset"
    AlignDualEncoder.from_preset(str(run / "model")).save_to_preset(str(preset))
    weights = preset / "model.weights.h5"
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    with pytest.raises(ValueError, match="model.weights.h5` is damaged"):
        upload(preset, "hf://me/colors")
    assert not hub.repositories
    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    hub_server.forget()
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        upload(run, "hf://me/colors")


def test_a_private_model_goes_to_no_public_repository(run, hub, capsys):
    """The hub leaves a repository that is there as it is, and says nothing."""
    assert main(["upload", str(run), "hf://me/secret", "--private"]) == 0
    assert main(["upload", str(run), "hf://me/secret", "--private"]) == 0
    assert "me/secret" in hub.private
    hub.repositories["me/open"] = {}
    capsys.readouterr()
    assert main(["upload", str(run), "hf://me/open", "--private"]) != 0
    assert "`me/open` already exists and is public" in capsys.readouterr().err
    assert hub.repositories["me/open"] == {}


def test_intervals_are_wilsons():
    proportion = pytest.importorskip("scipy.stats").binomtest
    for hits, count in ((0, 7), (3, 7), (7, 7), (612, 1000)):
        expected = proportion(hits, count).proportion_ci(0.95, "wilson")
        found = wilson_interval(hits / count, count)
        np.testing.assert_allclose(found, expected, atol=1e-12)
