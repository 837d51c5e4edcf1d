import json
import re
import tracemalloc
from pathlib import Path

import hostile
import keras
import keras_hub
import numpy as np
import pytest
from tiny_align import tiny_align
from towers import IMAGE_SIZES
from towers import THOROUGH
from towers import towers

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras import EfficientNetL2Backbone
from align_keras import list_presets
from align_keras.embedding import load_embedder
from align_keras.interop import convert
from align_keras.models.carried import Carried
from align_keras.models.presets import find_preset
from align_keras.models.presets import load_config
from align_keras.models.shipped_presets import presets_directory
from align_keras.serving.export import export
from align_keras.training.averaging import average
from align_keras.training.known_towers import KnownTower

# Counting needs no second backend, and JAX is slow to trace large networks.
once = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="Sizes do not depend on the backend",
)

TEXT_SIZES = ["tiny", "mini", "small", "medium", "base", "large"]


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_every_pair_of_sizes_is_there():
    names = [f"align_{i}_bert_{t}" for i in IMAGE_SIZES for t in TEXT_SIZES]
    assert sorted(list_presets()) == sorted(names)


def test_paper_widths():
    table = list_presets()
    assert table["align_l2_bert_large"]["embedding_dim"] == 1376
    assert table["align_b7_bert_base"]["embedding_dim"] == 640
    assert table["align_b3_bert_mini"]["embedding_dim"] == 640
    # 467.22 M + 405.24 M + the text projection.
    assert table["align_l2_bert_large"]["parameters"] == (
        467_219_796 + 405_237_760 + 1024 * 1376 + 1376 + 1
    )


def test_every_preset_composes_the_presets_of_its_towers():
    # Towers are built below, and in test_efficientnet_backbone.py; composing
    # them is checked in full here.
    for name, row in list_presets().items():
        config = load_config(name)["config"]
        for kind in ("image_encoder", "text_encoder"):
            assert config[kind] == load_config(row[kind]), name


def test_a_tower_is_one_file():
    files = presets_directory().glob("*/*.json")
    assert sorted(path.relative_to(presets_directory()) for path in files) == [
        *(Path("image", f"{size}.json") for size in IMAGE_SIZES),
        *(Path("text", f"{size}.json") for size in sorted(TEXT_SIZES)),
    ]


@once
@pytest.mark.parametrize("size", towers("b0", "b3", "b5", "l2"))
def test_presets_build_by_name(size):
    """Each size of image encoder, with the sizes of text encoder in turn."""
    text_size = TEXT_SIZES[IMAGE_SIZES.index(size) % len(TEXT_SIZES)]
    name = f"align_{size}_bert_{text_size}"
    row = list_presets()[name]
    with keras.StatelessScope():
        model = AlignDualEncoder.from_preset(name)
    assert count(model) == row["parameters"]
    assert model.embedding_dim == row["embedding_dim"]
    macs = model.image_encoder.count_macs(289)
    macs += model.text_encoder.count_macs(64)
    assert 2 * macs / 1e9 == pytest.approx(row["gflops"], abs=0.006)
    files = {"image": model.image_encoder, "text": model.text_encoder}
    sizes = {"image": size, "text": text_size}
    for kind, tower in files.items():
        path = presets_directory() / kind / f"{sizes[kind]}.json"
        stored = json.loads(path.read_text())
        assert count(tower) == stored["parameters"]
        assert (
            tower.count_macs(289 if kind == "image" else 64) == (stored["macs"])
        )
        built = tower.get_config()
        for name, value in stored["config"].items():
            assert built[name] == value, name
    assert isinstance(model.image_encoder, EfficientNetL2Backbone) == (
        size == "l2"
    )


@once
@pytest.mark.skipif(
    not THOROUGH, reason="takes a minute and 14 GB; ALIGN_THOROUGH=1 runs it"
)
def test_largest_model_runs_within_16_gib(run_script):
    script = Path(__file__).with_name("largest_model.py")
    gib = float(run_script(script).stdout.splitlines()[-1])
    assert 3 < gib < 16


def test_from_preset_says_once_that_weights_are_fresh(capsys):
    with keras.StatelessScope():
        for _ in range(2):
            BertTextEncoder.from_preset("bert_mini")
    assert capsys.readouterr().err.count("freshly initialised") == 1


def test_arguments_of_the_towers_can_be_replaced():
    with keras.StatelessScope():
        model = AlignDualEncoder.from_preset(
            "align_b0_bert_tiny",
            image_encoder={"batch_norm": "ghost"},
            text_encoder={"vocabulary_size": 321},
            embedding_dim=77,
        )
    assert model.image_encoder.batch_norm == "ghost"
    assert model.text_encoder.vocabulary_size == 321
    assert model.embedding_dim == 77


def test_classes_know_their_presets():
    assert "efficientnet_b3" in EfficientNetBackbone.presets
    assert "bert_large" not in EfficientNetBackbone.presets
    assert len(AlignDualEncoder.presets) == 54


@pytest.mark.parametrize(
    "part",
    [
        AlignImageConverter,
        AlignPreprocessor,
        AlignTokenizer,
        keras_hub.layers.ImageConverter,
        keras_hub.models.Backbone,
        keras_hub.models.ImageClassifier,
        keras_hub.models.TextClassifierPreprocessor,
        keras_hub.models.Tokenizer,
    ],
)
def test_an_architecture_is_no_more_than_that(part):
    """KerasHub's own classes load what has weights; they say so too."""
    for name, cls in (
        ("align_b7_bert_base", "AlignDualEncoder"),
        ("efficientnet_b0", "EfficientNetBackbone"),
    ):
        told = rf"`{name}` is an archi.*`{cls}.from_preset\("
        with pytest.raises(ValueError, match=told):
            part.from_preset(name)


@pytest.mark.parametrize("part", ["tokenizer", "image_converter"])
def test_parts_are_loaded_from_their_own_directory(part, tmp_path):
    preprocessor = tiny_align().preprocessor
    model = BertTextEncoder(10, 1, 2, 16, 32)
    model.save_to_preset(tmp_path / "tower")
    for own in (preprocessor, getattr(preprocessor, part)):
        cls, path = type(own), str(tmp_path / type(own).__name__)
        own.save_to_preset(path)
        assert cls.from_preset(path).get_config() == own.get_config()
        with pytest.raises(ValueError, match=r"tower` holds no \w+.json of"):
            cls.from_preset(tmp_path / "tower")
        with pytest.raises(ValueError, match="no config.json"):
            AlignDualEncoder.from_preset(path)


def test_saved_preset_of_an_architecture_is_the_same_model(tmp_path):
    model = AlignDualEncoder.from_preset(
        "align_b0_bert_tiny", text_encoder={"vocabulary_size": 50}
    )
    model.save_to_preset(tmp_path / "saved")
    loaded = AlignDualEncoder.from_preset(tmp_path / "saved")
    assert loaded.get_config() == model.get_config()
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        )


def test_dtype_of_the_caller_holds_for_both_towers():
    with keras.StatelessScope():
        model = AlignDualEncoder.from_preset(
            "align_b0_bert_tiny", dtype="mixed_bfloat16"
        )
    for part in (model, model.image_encoder, model.text_encoder):
        assert part.dtype_policy.name == "mixed_bfloat16"


def test_misspelt_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="`align_b1_bert_mini`"):
        AlignDualEncoder.from_preset("align_b1_bert_mni")


def test_directory_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        find_preset(tmp_path)


def test_wrong_class_is_refused():
    with pytest.raises(ValueError, match="BertTextEncoder"):
        EfficientNetBackbone.from_preset("bert_tiny")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_of_weights_does_not_load(tmp_path, place):
    model = tiny_align()
    for cls, part in (
        (AlignDualEncoder, model),
        (BertTextEncoder, model.text_encoder),
    ):
        preset = tmp_path / cls.__name__
        part.save_to_preset(str(preset))
        weights = preset / "model.weights.h5"
        whole = weights.read_bytes()
        cls.from_preset(str(preset))
        hostile.flip(weights, place)
        with pytest.raises(ValueError, match=f"`{weights}` is damaged"):
            cls.from_preset(str(preset))
        # Fresh weights need none.
        cls.from_preset(str(preset), load_weights=False)
        hostile.cut(weights)
        with pytest.raises(ValueError, match=f"`{weights}` is damaged"):
            cls.from_preset(str(preset))
        weights.write_bytes(whole)
        cls.from_preset(str(preset))
        for text in (hostile.DEEP, "[]", '{"../a": ""}'):
            (preset / "checksums.json").write_text(text)
            with pytest.raises(ValueError, match=r"checksums\.json"):
                cls.from_preset(str(preset))
        # Whoever changes weights on purpose says so.
        (preset / "checksums.json").unlink()
        cls.from_preset(str(preset))


def test_missing_weights_are_no_architecture(tmp_path, capsys):
    def load_tower(preset):
        return KnownTower(preset, "text").open()

    model = tiny_align()
    for cls, part, calls in (
        (AlignDualEncoder, model, [AlignDualEncoder.from_preset]),
        (
            BertTextEncoder,
            model.text_encoder,
            [BertTextEncoder.from_preset, load_tower],
        ),
    ):
        preset = tmp_path / cls.__name__
        part.save_to_preset(str(preset))
        (preset / "model.weights.h5").unlink()
        for call in calls:
            with pytest.raises(ValueError, match=r"weights\.h5` is missing"):
                call(str(preset))
        cls.from_preset(str(preset), load_weights=False)
    assert not capsys.readouterr().err


def test_fresh_weights_do_not_go_out(tmp_path):
    preset = tmp_path / "preset"
    tiny_align().save_to_preset(str(preset))
    for name in ("model.weights.h5", "checksums.json"):
        (preset / name).unlink()
    AlignDualEncoder.from_preset(str(preset))
    out = tmp_path / "out"
    for source in (str(preset), "align_b0_bert_tiny"):
        for call, arguments in (
            (load_embedder, (source,)),
            (average, (source, source, 0.5, out)),
            (convert, (source, out, "huggingface")),
            (export, (source, out)),
        ):
            with pytest.raises(ValueError, match=f"`{source}` is an archit"):
                call(*arguments)
    assert not out.exists()


def test_errors_name_what_the_caller_replaced(tmp_path):
    encoder = BertTextEncoder(9, 1, 1, 8, 8)
    encoder.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="config.json`, with num_layers='two'"):
        BertTextEncoder.from_preset(str(tmp_path), num_layers="two")


def test_a_flipped_bit_beside_the_weights_does_not_load(tmp_path):
    """It would only change what is embedded: words, or the size of images."""
    preset = tmp_path / "preset"
    model = tiny_align()
    model.save_to_preset(str(preset))
    parts = {
        "assets/tokenizer/vocabulary.txt": AlignTokenizer,
        "tokenizer.json": AlignTokenizer,
        "image_converter.json": AlignImageConverter,
        "preprocessor.json": AlignPreprocessor,
    }
    for name, part in parts.items():
        whole = (preset / name).read_bytes()
        # The digit of a size, or the letter of a word, is still one.
        place = re.search(rb"dog|: \d|true|false|null", whole).end() - 1
        changed = bytearray(whole)
        changed[place] ^= 1
        (preset / name).write_bytes(changed)
        for cls in (part, AlignPreprocessor, AlignDualEncoder):
            with pytest.raises(ValueError, match=f"`{preset / name}` is dam"):
                cls.from_preset(str(preset))
        (preset / name).write_bytes(whole)
    # Another part may take its place, and the weights are known as before.
    part = AlignTokenizer([*model.preprocessor.tokenizer.vocabulary, "cat"])
    part.save_to_preset(str(preset))
    again = AlignDualEncoder.from_preset(str(preset))
    assert again.preprocessor.tokenizer.vocabulary[-1] == "cat"
    hostile.flip(preset / "model.weights.h5")
    with pytest.raises(ValueError, match="model.weights.h5` is damaged"):
        AlignDualEncoder.from_preset(str(preset))


def test_a_flipped_bit_of_a_config_does_not_load(tmp_path):
    """It would make another network that the weights may fit as well."""
    model = tiny_align()
    for cls, part in (
        (AlignDualEncoder, model),
        (BertTextEncoder, model.text_encoder),
        (EfficientNetBackbone, model.image_encoder),
    ):
        preset = tmp_path / cls.__name__
        part.save_to_preset(str(preset))
        config = preset / "config.json"
        whole = config.read_bytes()
        for match in list(re.finditer(rb": \d|e-\d", whole))[::9]:
            changed = bytearray(whole)
            changed[match.end() - 1] ^= 1
            config.write_bytes(changed)
            for load_weights in (True, False):
                told = f"`{config}` is damaged: copy it again; if it was "
                told += f"changed on purpose, remove {preset}/checksums.json"
                with pytest.raises(ValueError, match=told):
                    cls.from_preset(str(preset), load_weights)
        config.write_bytes(whole)
        cls.from_preset(str(preset))
        # Whoever changes it on purpose does as the message says.
        config.write_bytes(whole + b"\n")
        (preset / "checksums.json").unlink()
        cls.from_preset(str(preset))


CONFIGS = sorted(hostile.configs_that_run_programs(""))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_preset_runs_no_program(tmp_path, name):
    """Nor does its error begin with the whole of its config."""
    preset, ran = tmp_path / "preset", tmp_path / "ran"
    preset.mkdir()
    config = hostile.configs_that_run_programs(ran)[name]
    for place in ("image_encoder", "text_encoder", None):
        whole = load_config("align_b0_bert_tiny")
        if place is None:
            whole = config
        else:
            whole["config"][place] = config
        (preset / "config.json").write_text(json.dumps(whole))
        with pytest.raises(ValueError) as caught:
            AlignDualEncoder.from_preset(str(preset), load_weights=False)
        assert not ran.exists()
        assert "epsilon" not in str(caught.value)


def parts_of_presets(preset, output):
    """Everything that opens a preset directory or a file in its place."""
    return {
        "an image tower": KnownTower(str(preset), "image").open,
        "a text tower": KnownTower(str(preset), "text").open,
        "the image encoder": lambda: EfficientNetBackbone.from_preset(preset),
        "the text encoder": lambda: BertTextEncoder.from_preset(str(preset)),
        "the pair": lambda: AlignDualEncoder.from_preset(str(preset)),
        "the tokenizer": lambda: AlignTokenizer.from_preset(str(preset)),
        "the images": lambda: AlignImageConverter.from_preset(str(preset)),
        "both": lambda: AlignPreprocessor.from_preset(str(preset)),
        "the embedder": lambda: load_embedder(str(preset)),
        "convert": lambda: convert(str(preset), str(output)),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_no_part_of_a_preset_runs_a_program(tmp_path, name):
    preset, ran = tmp_path / "preset", tmp_path / "ran"
    preset.mkdir()
    config = json.dumps(hostile.configs_that_run_programs(ran)[name])
    for file in ("config", "tokenizer", "image_converter", "preprocessor"):
        (preset / f"{file}.json").write_text(config)
    (preset / "model.weights.h5").write_bytes(b"")
    for part, call in parts_of_presets(preset, tmp_path / "out").items():
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call()
        message = str(caught.value).replace(str(tmp_path), "")
        assert len(message) < 700, part
        assert not ran.exists(), part


def test_keras_files_are_not_opened(tmp_path, monkeypatch):
    """By none of ours; and Keras' own loader runs no program in a tower."""
    folder, ran = tmp_path / "files", tmp_path / "ran"
    folder.mkdir()
    monkeypatch.chdir(folder)
    files = hostile.keras_files(folder, ran)
    tracemalloc.start()
    for name, path in files.items():
        for part, call in parts_of_presets(path, tmp_path / "out").items():
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                call()
            assert str(path) in str(caught.value), (name, part)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
    for name in ("a lambda", "a lambda in a tower", "a process"):
        with pytest.raises((ValueError, TypeError)):
            keras.saving.load_model(files[name])
    assert sorted(folder.iterdir()) == sorted(files.values())
    assert not ran.exists() and not (tmp_path / "out").exists()


def test_compressed_tensors_are_not_carried(tmp_path):
    """A few bytes of them could be any number."""
    Carried({"a": np.ones(3)}, {"b": 1}).write(tmp_path)
    assert Carried.read(tmp_path).config == {"b": 1}
    (path,) = tmp_path.iterdir()
    np.savez_compressed(path, config=np.array("{}"), a=np.zeros(2**24))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"`{path}` is compressed"):
        Carried.read(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
