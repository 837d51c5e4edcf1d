"""Commands that need no network answer before TensorFlow is loaded."""

import argparse
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from align_keras.cli.options import STRATEGIES
from align_keras.cli.options import FolderOrSplit
from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import bounded
from align_keras.cli.options import check_inputs
from align_keras.models.shipped_presets import may_be_preset
from align_keras.models.shipped_presets import preset_names

SCRIPT = """
import sys
from align_keras.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
loaded = {"tensorflow", "keras", "jax", "torch"} & set(sys.modules)
print("status", status, "loaded", sorted(loaded))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.zeros((8, 8, 3), "uint8")
    Image.fromarray(pixels).save(folder / "0.jpg")
    (folder / "captions.csv").write_text("image,caption\n0.jpg,a night\n")
    return folder


TRAIN = "train --data {photos} --workdir {out}"


@pytest.mark.parametrize(
    "status, arguments",
    [
        (0, "presets"),
        (0, "recipes"),
        (0, "recipes finetune"),
        (2, "recipes nowhere"),
        (2, "pack {photos}/nowhere --output {out}"),
        (2, f"{TRAIN} --recipe nowhere"),
        (2, f"{TRAIN} --recipe small --set steps=many"),
        (2, f"{TRAIN} --recipe small --set steps"),
        (2, f"{TRAIN} --recipe small --preset nowhere"),
        (2, f"{TRAIN} --recipe small --image-weights nowhere"),
        (2, f"{TRAIN} --recipe small --vocabulary {{photos}}/nowhere"),
        (2, "train --data ./nowhere/*.tfrecord --recipe small --workdir {out}"),
        (2, "plan --preset nowhere"),
        (2, "plan --preset align_b0_bert_mini --recipe nowhere"),
        (2, "average ./nowhere {photos} --weight 0.5 --output {out}"),
        (2, "classify {photos} --model ./nowhere --classes {photos}"),
        (2, "convert ./nowhere {out}"),
        (2, "diagnose --model {photos} --data ./nowhere --output {out}"),
        (2, "embed ./nowhere --model {photos} --output {out}"),
        (2, "score {photos} --model nowhere --output {out}"),
        (2, "export --model nowhere --output {out}"),
        (2, "index ./nowhere --model {photos} --output {out}"),
        (2, "search ./nowhere --text dog"),
        (2, "search {photos} --text dog"),
        (2, "serve ./nowhere"),
        (2, "upload ./nowhere hf://user/name"),
        (2, "ablate ./nowhere --workdir {out}"),
        (2, "evaluate all --model {photos} --model nowhere --data-root /"),
        (2, "evaluate retrieval --model nowhere --data {photos}"),
        (2, "evaluate retrieval --model {photos} --data {photos}/*.tar"),
        (2, "evaluate zero-shot --model {photos} --data ./nowhere"),
        (2, "evaluate words --model {photos} --data ./nowhere"),
        (2, "evaluate compare ./nowhere ./nowhere"),
        (2, "evaluate knn --model {photos} --train ./nowhere --data ./nowhere"),
        (2, "embed {photos} --model {photos} --output {out} --batch-size 0"),
        (2, "score {photos} --model {photos} --output {out} --strategy none"),
        (2, "evaluate retrieval --model {photos}"),
        (2, "evaluate retrieval --model {photos} --tfds a --allow-outside"),
        (2, "evaluate words --model {photos} --data / --bootstrap -1"),
        (
            2,
            "evaluate zero-shot --model {photos} --data a --tfds b --objectnet",
        ),
        (
            2,
            "evaluate zero-shot --model {photos} --data test --tfds b "
            "--classes ./nowhere",
        ),
        (2, "export --model {photos} --output {out} --precision int8"),
        (2, "export --model {photos} --output {out} --top-k 3"),
        (2, "export --model {photos} --output {out} --batch-sizes 8 0"),
        (2, "average {photos} {photos} --weight 1.5 --output {out}"),
        (2, "diagnose --model {photos} --data / --output {out} --k 0"),
        (2, "index {photos} --model {photos} --output {out} --templates /"),
        (2, "serve {photos} --rate nan"),
        (2, "upload {photos} user/name"),
        (2, f"{TRAIN} --recipe small"),
        (2, f"{TRAIN} --recipe small --log none --log wandb"),
        (2, f"{TRAIN} --recipe small --preset bert_tiny --hold-out 0.6"),
    ],
)
def test_without_tensorflow(photos, tmp_path, status, arguments):
    words = arguments.split()
    words = [w.format(photos=photos, out=tmp_path / "out") for w in words]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == f"status {status} loaded []"
    if status:
        line = done.stderr.splitlines()[-1]
        assert re.match("align-keras[a-z -]*: error: ", line), line
        assert "nowhere" not in arguments or "nowhere" in line


@pytest.mark.parametrize(
    "options",
    [
        {"data": InputPath("gs://bucket/*.tfrecord")},
        {"data": InputPath("~/anywhere")},
        {"data": InputPath("{folder}/{{a,b}}.tfrecord")},
        {"data": InputPath("{folder}/*[0].jp?")},
        {"data": InputPath("{folder}/[brackets]")},
        {"train": FolderOrSplit("train[:80%]"), "tfds": "flowers"},
        {"model": ModelPath("hf://user/name")},
        {"model": ModelPath("{folder}")},
        {
            "model": [
                ModelPath("align_b0_bert_mini"),
                ModelPath("align_b7_bert_base_coyo700m"),
            ]
        },
        {"model": ModelPath("clip_vit_base_patch16")},
    ],
)
def test_what_may_be_there_is_left_to_the_command(photos, options):
    def place(value):
        return type(value)(value.format(folder=photos))

    (photos / "[brackets]").touch()
    placed = {
        name: list(map(place, v)) if isinstance(v, list) else place(v)
        for name, v in options.items()
    }
    namespace = argparse.Namespace(**placed)
    check_inputs(namespace)
    assert vars(namespace) == placed
    # Not a class of ours, which could not be written to YAML.
    for value in vars(namespace).values():
        values = value if isinstance(value, list) else [value]
        assert {type(item) for item in values} == {str}


def test_a_path_that_may_not_be_looked_at_is_not_called_absent(monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.lstat", refuse)
    check_inputs(argparse.Namespace(data=InputPath("/secret/data")))


def test_numbers_out_of_bounds_are_refused():
    share = bounded(float, least=0, most=0.5)
    assert [share("0"), share("0.5")] == [0, 0.5]
    for text in ("-0.1", "0.6", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            share(text)
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        bounded(float, above=0)("0")
    with pytest.raises(ValueError):
        bounded(int, least=1)("1.5")


def test_strategies_are_those_of_training():
    from align_keras.training import strategies

    assert STRATEGIES == strategies.STRATEGIES


def test_any_name_of_a_preset_may_be_there():
    pytest.importorskip("keras_hub")
    from align_keras import keras_hub_internals

    names = [*preset_names(), *keras_hub_internals.BUILTIN_PRESETS]
    assert len(names) > 200
    assert [name for name in names if not may_be_preset(name)] == []
    assert not may_be_preset("clip_vit_base")


def test_vectors_are_searched_without_keras(tmp_path):
    """An index loads its model only to embed words and images."""
    from align_keras.search import write_index

    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.weights.h5"):
        (tmp_path / "model" / name).write_text("{}")
    rows = np.eye(3, 4, dtype="float32")
    names = ["a", "b", "c"]
    thumbnails = [b"\xff\xd8\xff"] * 3
    write_index(
        [(names, names, rows, thumbnails)],
        3,
        tmp_path / "index",
        tmp_path / "model",
        "exact",
    )
    script = """
import sys
import numpy as np
from align_keras.search import Index
found = Index(sys.argv[1])
[(rows, _)] = found.search(np.eye(4, dtype="float32")[1:2], 1)
print(found.key(rows[0]), "keras" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "b False"


def test_every_public_name_is_there(monkeypatch):
    """Names are loaded when they are used, so an import alone shows little."""
    import importlib
    import pkgutil

    import align_keras

    packages = [align_keras.__name__]
    packages += [
        f"{align_keras.__name__}.{module.name}"
        for module in pkgutil.iter_modules(align_keras.__path__)
        if module.ispkg and module.name not in ("backend", "cli", "planning")
    ]
    for package in map(importlib.import_module, packages):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            assert not isinstance(value, type(sys)), (package, name)
