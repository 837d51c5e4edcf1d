import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_align import picture_file
from tiny_align import tiny_align

from align_keras.cli import main
from align_keras.serving import export_saved_model

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "a red bus near the house.",
    "Cafés, BLUE",
    "",
    "unheard-of words 東京",
    "the dog " * 200,
]

# What a server runs: it must find everything inside the SavedModel.
SERVE = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text

imported = set(sys.modules)
folder, *names = sys.argv[1:]
inputs = np.load(f"{folder}/inputs.npz", allow_pickle=True)
images = tf.constant(list(inputs["images"]))
texts = tf.constant(list(inputs["texts"]))
outputs = {}
for name in names:
    run = tf.saved_model.load(f"{folder}/{name}").signatures
    assert set(run) == {"encode_image", "encode_text", "serving_default"}
    both = run["serving_default"](image_bytes=images, texts=texts)
    for key, value in both.items():
        outputs[f"{name}/{key}"] = value
    two = run["encode_text"](texts=texts[3:5])
    outputs[f"{name}/two_texts"] = two["embeddings"]
one = run["encode_image"](image_bytes=images[2:3])
outputs[f"{name}/one_image"] = one["embeddings"]
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
from align_keras.evaluation import embed_images, embed_texts
from align_keras.serving import export_saved_model

folder = sys.argv[1]
inputs = np.load(f"{folder}/inputs.npz", allow_pickle=True)
model = AlignDualEncoder.from_preset(f"{folder}/preset")
export_saved_model(model, f"{folder}/jax")
np.savez(
    f"{folder}/embedded_on_jax.npz",
    images=embed_images(model, list(inputs["images"]), batch_size=3),
    texts=embed_texts(model, list(inputs["texts"]), batch_size=4),
)
"""


def run_python(code, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def models():
    return {"float32": tiny_align(), "bfloat16": tiny_align("mixed_bfloat16")}


@pytest.fixture(scope="module")
def inputs():
    return [
        picture_file(0),
        picture_file(1, (200, 90)),
        picture_file(2, (40, 40), mode="L"),
        picture_file(3, (77, 51), "PNG", "P"),
        picture_file(4, (33, 64), "PNG", "LA"),
    ]


@pytest.fixture(scope="module")
def folder(models, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    np.savez(
        folder / "inputs.npz",
        images=np.array(inputs, dtype=object),
        texts=np.array(TEXTS, dtype=object),
    )
    for name, model in models.items():
        model.export(folder / name)
    models["float32"].save_to_preset(folder / "preset")
    run_python(
        ON_JAX,
        folder,
        KERAS_BACKEND="jax",
        # Compiling takes longer than anything this small runs.
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        PYTHONPATH=str(ROOT),
    )
    return folder


@pytest.fixture(scope="module")
def served(folder):
    run_python(SERVE, folder, "jax", "bfloat16", "float32", PYTHONPATH="")
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs)


def embeddings(model, inputs):
    return (
        keras.ops.convert_to_numpy(model.encode_image(inputs)),
        keras.ops.convert_to_numpy(model.encode_text(TEXTS)),
    )


@pytest.mark.parametrize("name", ["float32", "jax"])
def test_equals_the_model(name, served, models, inputs):
    images, texts = embeddings(models["float32"], inputs)
    # Rows differ from each other, so that a mix-up could not pass.
    assert np.ptp(images, axis=0).max() > 0.05
    assert np.ptp(texts, axis=0).max() > 0.05
    expected = {
        "image_embeddings": images,
        "text_embeddings": texts,
        "similarities": images @ texts.T,
        "two_texts": texts[3:5],
    }
    for key, value in expected.items():
        result = served[f"{name}/{key}"]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        served["float32/one_image"], images[2:3], rtol=0, atol=1e-5
    )


def test_mixed_precision_gives_float32(served, models, inputs):
    images, texts = embeddings(models["bfloat16"], inputs)
    for key, value in {"image": images, "text": texts}.items():
        result = served[f"bfloat16/{key}_embeddings"]
        assert result.dtype == np.float32
        np.testing.assert_allclose(
            np.linalg.norm(result, axis=1), 1, rtol=0, atol=1e-6
        )
        # The graph may fuse operations, which moves roundings to 8 bits.
        np.testing.assert_allclose(result, value, rtol=0, atol=0.02)
        assert np.abs(result - served[f"float32/{key}_embeddings"]).max() > 1e-5
    assert served["bfloat16/similarities"].dtype == np.float32


def test_jax_embeds_the_same(folder, models, inputs):
    images, texts = embeddings(models["float32"], inputs)
    with np.load(folder / "embedded_on_jax.npz") as result:
        np.testing.assert_allclose(result["images"], images, rtol=0, atol=1e-5)
        np.testing.assert_allclose(result["texts"], texts, rtol=0, atol=1e-5)


def test_real_photographs(folder, models, data_directory):
    files = sorted((data_directory / "photos").glob("*.JPEG"))[::20]
    run = tf.saved_model.load(str(folder / "float32")).signatures
    contents = tf.constant([file.read_bytes() for file in files])
    result = run["encode_image"](image_bytes=contents)["embeddings"]
    expected = keras.ops.convert_to_numpy(models["float32"].encode_image(files))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_names_and_shapes_of_signatures(folder):
    signatures = tf.saved_model.load(str(folder / "float32")).signatures
    strings = tf.TensorSpec((None,), tf.string)

    def spec(structure):
        return {k: (v.shape.as_list(), v.dtype) for k, v in structure.items()}

    def received(name):
        return spec(signatures[name].structured_input_signature[1])

    image_bytes, texts = {"image_bytes": strings}, {"texts": strings}
    assert received("encode_image") == spec(image_bytes)
    assert received("encode_text") == spec(texts)
    assert received("serving_default") == spec({**image_bytes, **texts})
    assert spec(signatures["serving_default"].structured_outputs) == {
        "similarities": ([None, None], tf.float32),
        "image_embeddings": ([None, 64], tf.float32),
        "text_embeddings": ([None, 64], tf.float32),
    }


def test_failed_export_leaves_nothing(models, tmp_path, monkeypatch):
    def fail(module, path, signatures):
        Path(path, "saved_model.pb").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_saved_model(models["float32"], tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_model_without_preprocessor(tmp_path):
    model = tiny_align()
    model.preprocessor = None
    with pytest.raises(ValueError, match="no preprocessor.*before exporting"):
        export_saved_model(model, tmp_path / "model")


def test_example(folder, inputs, served, tmp_path):
    bus, gray = tmp_path / "bus.jpg", tmp_path / "gray.jpg"
    bus.write_bytes(inputs[0])
    gray.write_bytes(inputs[2])
    script = ROOT / "examples" / "serve_saved_model.py"
    result = subprocess.run(
        [sys.executable, script, folder / "float32", bus, gray]
        + ["--text", TEXTS[0], TEXTS[1]],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    scores = served["float32/similarities"]
    expected = [
        line
        for path, row in ((bus, scores[0]), (gray, scores[2]))
        for line in (
            str(path),
            f"  {row[0]:6.3f}  {TEXTS[0]}",
            f"  {row[1]:6.3f}  {TEXTS[1]}",
        )
    ]
    assert result.stdout.splitlines() == expected


def test_command_line(folder, served, tmp_path, capsys):
    output = tmp_path / "served"
    command = ["export", "--model", str(folder / "preset")]
    assert main([*command, "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(output),
        "signatures": ["encode_image", "encode_text", "serving_default"],
        "embedding_dim": 64,
    }
    run = tf.saved_model.load(str(output)).signatures["encode_text"]
    np.testing.assert_allclose(
        run(texts=tf.constant(TEXTS))["embeddings"],
        served["float32/text_embeddings"],
        rtol=0,
        atol=1e-6,
    )
    command = ["export", "--model", str(tmp_path / "nowhere")]
    assert main([*command, "--output", str(output)]) == 2
    assert "nowhere" in capsys.readouterr().err
