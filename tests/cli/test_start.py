"""Commands that need no network answer before TensorFlow is loaded."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import sys
from align_keras.cli import main
status = main(sys.argv[1:])
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
    ],
)
def test_without_tensorflow(photos, tmp_path, status, arguments):
    words = arguments.split()
    words = [w.format(photos=photos, out=tmp_path / "out") for w in words]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == f"status {status} loaded []"
    assert status == 0 or "align-keras: error: " in done.stderr


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
