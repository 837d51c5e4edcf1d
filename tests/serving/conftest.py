"""One set of exports, and what a plain process makes of them, for all tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_align import image_file
from tiny_align import tiny_align

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "a red bus near the house.",
    "Cafés, BLUE",
    "",
    "unheard-of words 東京",
    "the dog " * 200,
]
CLASSES = ["bus", "dog", "red house"]
TEMPLATES = ["a {}", "the {} on a house"]
TEMPERATURE = 0.05

# What a server runs: it must find everything inside the SavedModel.
SERVE = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text

imported = set(sys.modules)


def optimise(do):
    options = {"disable_meta_optimizer": not do}
    tf.config.optimizer.set_experimental_options(options)


folder, *names = sys.argv[1:]
inputs = np.load(f"{folder}/inputs.npz", allow_pickle=True)
images = tf.constant(list(inputs["images"]))
texts = tf.constant(list(inputs["texts"]))
outputs = {}
for name in names:
    # Kept, because signatures do not keep their variables alive.
    loaded = tf.saved_model.load(f"{folder}/{name}")
    run = loaded.signatures
    # What is served is optimised; one signature shows that it is the same.
    optimise(True)
    results = {
        "both": run["serving_default"](image_bytes=images, texts=texts),
    }
    optimise(False)
    results |= {
        "two": run["encode_text"](texts=texts[3:5]),
        # Without the long text, less is computed.
        "short": run["encode_text"](texts=texts[:3]),
        "one": run["encode_image"](image_bytes=images[2:3]),
    }
    if name != "jax":  # JAX's shapes are of one row or more.
        results["none"] = run["encode_image"](image_bytes=images[:0])
    if "classify" in run:
        results["classify"] = run["classify"](image_bytes=images)
    for call, values in results.items():
        for key, value in values.items():
            outputs[f"{name}/{call}/{key}"] = value
# TensorFlow Text loads parts of Keras itself; the SavedModel loads none.
unwanted = ("align_keras", "keras_hub", "keras", "jax")
for module in set(sys.modules) - imported:
    assert module.split(".")[0] not in unwanted, module
assert not {"align_keras", "keras_hub"} & set(sys.modules)
np.savez(f"{folder}/outputs.npz", **outputs)
"""

# The same preset under the other backend: embedded, and exported.
ON_JAX = """
import sys
import numpy as np
from align_keras import AlignDualEncoder
from align_keras.embedding import embed_images
from align_keras.embedding import embed_texts

folder = sys.argv[1]
inputs = np.load(f"{folder}/inputs.npz", allow_pickle=True)
model = AlignDualEncoder.from_preset(f"{folder}/preset")
model.export(f"{folder}/jax")
np.savez(
    f"{folder}/embedded_on_jax.npz",
    images=embed_images(model, list(inputs["images"][:-1]), batch_size=3),
    texts=embed_texts(model, list(inputs["texts"]), batch_size=4),
)
"""


@pytest.fixture(scope="session")
def model():
    model = tiny_align()
    model.contrastive_head.set_temperature(TEMPERATURE)
    return model


@pytest.fixture(scope="session")
def photos():
    """Five kinds of files that show something."""
    return [
        image_file(0),
        image_file(1, (200, 90)),
        image_file(2, (40, 40), mode="L"),
        image_file(3, (77, 51), "PNG", "P"),
        image_file(4, (33, 64), "PNG", "LA"),
    ]


@pytest.fixture(scope="session")
def folder(model, photos, tmp_path_factory):
    """Directory with a preset, inputs, and an export in float32."""
    folder = tmp_path_factory.mktemp("export")
    np.savez(
        folder / "inputs.npz",
        # The last is cut short: its row is to be zeros.
        images=np.array([*photos, photos[0][:-300]], dtype=object),
        texts=np.array(TEXTS, dtype=object),
    )
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n\n")
    (folder / "templates.json").write_text(json.dumps(TEMPLATES))
    model.save_to_preset(folder / "preset")
    model.export(
        folder / "float32", classes=CLASSES, templates=TEMPLATES, top_k=2
    )
    return folder


@pytest.fixture(scope="session")
def served(folder, tmp_path_factory):
    """Outputs of both exports, from a process without this package."""
    environment = {
        # Compiling takes longer than anything this small runs.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(ROOT),
    }
    run_python(ON_JAX, folder, **environment)
    run_python(SERVE, folder, "jax", "float32", PYTHONPATH="")
    with np.load(folder / "outputs.npz", allow_pickle=True) as outputs:
        return dict(outputs)


def run_python(code, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
