import json
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from stand_in_server import Model
from stand_in_server import load

from align_keras import AlignDualEncoder
from align_keras.classes import class_vectors
from align_keras.cli import main
from align_keras.embedding import embed_texts
from align_keras.serving import export_saved_model
from align_keras.serving import measure_latency
from align_keras.serving.export import export

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLASSES = ["bus", "dog", "red house"]
TEMPLATES = ["a {}", "the {} on a house"]


@pytest.fixture(scope="module")
def expected(model, photos, folder):
    """What the Python model makes of the same inputs."""
    with np.load(folder / "inputs.npz", allow_pickle=True) as inputs:
        texts = list(inputs["texts"])
    images = keras.ops.convert_to_numpy(model.encode_image(photos))
    texts = keras.ops.convert_to_numpy(model.encode_text(texts))
    # Rows differ from each other, so that a mix-up could not pass.
    assert np.ptp(images, axis=0).max() > 0.05
    assert np.ptp(texts, axis=0).max() > 0.05
    # The last image is damaged.
    return np.concatenate([images, np.zeros_like(images[:1])]), texts


@pytest.mark.parametrize("name", ["float32", "jax"])
def test_equals_the_model(name, served, expected):
    images, texts = expected
    pairs = {
        "both/image_embeddings": images,
        "both/text_embeddings": texts,
        "both/similarities": images @ texts.T,
        "both/temperature": 0.05,
        "two/embeddings": texts[3:5],
        "short/embeddings": texts[:3],
        "one/embeddings": images[2:3],
    }
    if name != "jax":
        pairs["none/embeddings"] = images[:0]
    for key, value in pairs.items():
        result = served[f"{name}/{key}"]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5)
    assert served[f"{name}/both/valid"].tolist() == [True] * 5 + [False]
    assert not served[f"{name}/both/image_embeddings"][-1].any()


def test_classify(served, model, expected):
    names = [
        template.replace("{}", c) for c in CLASSES for template in TEMPLATES
    ]
    prompts = keras.ops.convert_to_numpy(model.encode_text(names))
    vectors = prompts.reshape(3, 2, -1).mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = class_vectors(partial(embed_texts, model), CLASSES, TEMPLATES)
    np.testing.assert_allclose(found, vectors, rtol=0, atol=1e-6)
    scores = np.exp(expected[0][:-1] @ vectors.T / 0.05)
    scores /= scores.sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :2]
    np.testing.assert_allclose(
        served["float32/classify/probabilities"],
        [*np.take_along_axis(scores, order, axis=1), [0, 0]],
        rtol=0,
        atol=1e-5,
    )
    labels = [[CLASSES[i].encode() for i in row] for row in order]
    assert served["float32/classify/labels"].tolist() == [*labels, [b"", b""]]
    assert not served["float32/classify/valid"][-1]


def test_jax_embeds_the_same(served, folder, expected):
    with np.load(folder / "embedded_on_jax.npz") as result:
        for key, value in zip(("images", "texts"), expected, strict=True):
            rows = len(result[key])
            np.testing.assert_allclose(
                result[key], value[:rows], rtol=0, atol=1e-5
            )


def test_names_and_shapes_of_signatures(folder):
    signatures = load(folder / "float32").signatures
    strings = tf.TensorSpec((None,), tf.string)

    def spec(structure):
        return {k: (v.shape.as_list(), v.dtype) for k, v in structure.items()}

    def received(name):
        return spec(signatures[name].structured_input_signature[1])

    image_bytes, texts = {"image_bytes": strings}, {"texts": strings}
    assert received("encode_image") == spec(image_bytes)
    assert received("classify") == spec(image_bytes)
    assert received("encode_text") == spec(texts)
    assert received("serving_default") == spec({**image_bytes, **texts})
    assert spec(signatures["serving_default"].structured_outputs) == {
        "similarities": ([None, None], tf.float32),
        "image_embeddings": ([None, 64], tf.float32),
        "text_embeddings": ([None, 64], tf.float32),
        "valid": ([None], tf.bool),
        # Without a first dimension, which a server could merge.
        "temperature": ([], tf.float32),
    }


def test_bfloat16_from_the_command_line(folder, photos, capsys):
    output = folder / "bfloat16"
    command = ["export", "--model", str(folder / "preset")]
    options = ["--output", str(output), "--precision", "bfloat16", "--json"]
    options += ["--classes", str(folder / "classes.txt"), "--top-k", "1"]
    options += ["--templates", str(folder / "templates.json")]
    options += ["--batch-sizes", "2", "--runs", "3"]
    assert main([*command, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    latency = result.pop("latency_ms")
    names = ["encode_image", "encode_text", "serving_default", "classify"]
    assert sorted(row["signature"] for row in latency) == sorted(names)
    for row in latency:
        assert row["batch_size"] == 2 and 0 < row["p50"] <= row["p99"]
    files = [file for file in output.rglob("*") if file.is_file()]
    assert result == {
        "output": str(output),
        "format": "saved_model",
        "embedding_dim": 64,
        "signatures": names,
        "warmup": True,
        "bytes": sum(file.stat().st_size for file in files),
    }
    # Weights are stored in 16 bits, and give what the model computes that
    # rounds them on the way.
    variables = "variables/variables.data-00000-of-00001"
    large = (folder / "float32" / variables).stat().st_size
    assert (output / variables).stat().st_size < 0.65 * large
    model = AlignDualEncoder.from_preset(
        folder / "preset", dtype="mixed_bfloat16"
    )
    loaded = tf.saved_model.load(str(output))
    embeddings = loaded.signatures["encode_image"](
        image_bytes=tf.constant(photos)
    )["embeddings"]
    assert embeddings.dtype == tf.float32
    # The graph may fuse operations, which moves roundings to 8 bits.
    rounded = keras.ops.convert_to_numpy(model.encode_image(photos))
    cosines = np.sum(embeddings.numpy() * rounded, axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=0, atol=1e-3)
    # Another image's vector would not do.
    assert (embeddings.numpy() @ rounded.T).min() < 0.99
    best = loaded.signatures["classify"](image_bytes=tf.constant(photos))
    assert best["labels"].shape == (5, 1)


def test_warmup_requests_run(folder):
    """One that is refused keeps a server from loading the model."""
    from tensorflow_serving.apis import prediction_log_pb2

    path = folder / "float32/assets.extra/tf_serving_warmup_requests"
    served = Model(folder / "float32", "align", batching=True)
    seen = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {
            key: tf.make_ndarray(value) for key, value in request.inputs.items()
        }
        name = request.model_spec.signature_name
        outputs = served.predict("align", name, inputs)
        assert all(outputs.get("valid", [True]))
        seen.append(name)
    assert sorted(seen) == ["classify", "encode_image", "encode_text"]


def test_what_cannot_be_timed_is_refused(tmp_path):
    module = tf.Module()
    module.double = tf.function(
        lambda x: {"y": 2.0 * x}, input_signature=[tf.TensorSpec((), name="x")]
    )
    path = str(tmp_path / "doubles")
    tf.saved_model.save(module, path, {"double": module.double})
    with pytest.raises(ValueError, match="`double` of.*doubles.*Received: x$"):
        measure_latency(path)
    for arguments in ({"runs": 0}, {"batch_sizes": (8, 0)}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}` must be.*{name}=0"):
            measure_latency(path, **arguments)


def test_from_c(folder, expected, photos, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("There is no C compiler.")
    import tensorflow_text

    home = Path(tf.__file__).parent
    if not list(home.glob("libtensorflow_cc.so.2")):
        pytest.skip("This TensorFlow has no C library for Linux.")
    program = tmp_path / "run_saved_model"
    subprocess.run(
        [compiler, HERE / "run_saved_model.c", "-o", program]
        + [f"-I{home}/include", f"-L{home}", f"-Wl,-rpath,{home}"]
        + ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"],
        check=True,
    )
    calls = []
    for name, file in (("encode_image", "bus.jpg"), ("encode_text", "text")):
        signature = _signature(folder / "float32", name)
        (source,) = signature.inputs.values()
        output = signature.outputs["embeddings"].name.split(":")
        calls += [source.name.split(":")[0], *output, tmp_path / file]
    (tmp_path / "bus.jpg").write_bytes(photos[0])
    (tmp_path / "text").write_text("a red bus near the house.")
    operations = Path(tensorflow_text.__file__).parent / "python" / "ops"
    result = subprocess.run(
        [program, folder / "float32", *calls]
        + sorted(operations.glob("_*.so")),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [
        np.array(line.split(), "float32") for line in result.stdout.splitlines()
    ]
    for row, values in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, values[0], rtol=0, atol=1e-5)


def _signature(path, name):
    from tensorflow.core.protobuf import saved_model_pb2

    content = (path / "saved_model.pb").read_bytes()
    saved_model = saved_model_pb2.SavedModel.FromString(content)
    return saved_model.meta_graphs[0].signature_def[name]


def test_another_export_leaves_nothing_of_the_one_before(
    model, tmp_path, monkeypatch
):
    """A warm-up request for `classify` keeps a model without it from loading.

    And `update_saved_model` must not take this for the export that it wrote.
    """

    def save(module, path, signatures):
        Path(path, "saved_model.pb").write_text(" ".join(signatures))

    monkeypatch.setattr(tf.saved_model, "save", save)
    export_saved_model(model, tmp_path, classes=["bus"], warmup=True)
    (requests,) = tmp_path.glob("assets.extra/*")
    assert b"classify" in requests.read_bytes()
    (tmp_path / "exported_from.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    export_saved_model(model, tmp_path, warmup=False)
    assert "classify" not in (tmp_path / "saved_model.pb").read_text()
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert {name for name in files if not name.startswith(".")} == {
        "saved_model.pb",
        "notes.txt",
    }


def test_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(module, path, signatures):
        Path(path, "saved_model.pb").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_saved_model(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "`precision` must be one of.*'int8'"),
        ({"top_k": 0}, "`top_k` must be positive"),
        ({"max_pixels": -1}, "`max_pixels` must be positive"),
        (
            {"classes": ["bus"], "templates": ["no place"]},
            "must hold `{}` once.*'no place'",
        ),
    ],
)
def test_wrong_arguments(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, tmp_path / "model", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_wrong_command_lines(folder, tmp_path, capsys):
    (tmp_path / "twice.txt").write_text("dog\ncat\ndog\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "object.json").write_text('{"prompts": []}')
    classes = ["--classes", str(folder / "classes.txt")]
    cases = [
        (["--classes", f"{tmp_path}/twice.txt"], "'dog' on line 1 and again"),
        (["--classes", f"{tmp_path}/empty.txt"], "names no class"),
        (["--classes", f"{tmp_path}/nowhere.txt"], "nowhere.txt"),
        (
            [*classes, "--templates", f"{tmp_path}/twice.txt"],
            "is not valid JSON",
        ),
        ([*classes, "--templates", f"{tmp_path}/object.json"], "a list"),
        (["--top-k", "3"], "--classes too"),
        (["--format", "onnx", "--max-pixels", "9"], "--max-pixels is an"),
        (["--model", f"{tmp_path}/missing"], "missing"),
    ]
    for options, message in cases:
        command = ["export", "--model", str(folder / "preset"), *options]
        assert main([*command, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [0]}, r"must be positive. Received: \[0\]"),
        ({"runs": -1}, "must not be negative. Received: -1"),
    ],
)
def test_numbers_that_no_export_takes(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(folder / "preset", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_model_without_preprocessor(model, tmp_path, monkeypatch):
    monkeypatch.setattr(AlignDualEncoder, "preprocessor", None)
    with pytest.raises(
        ValueError, match="no preprocessor.*not files and strings"
    ):
        export_saved_model(model, tmp_path / "model")


def test_example(folder, photos, expected, monkeypatch, capsys):
    bus, gray = folder / "bus.jpg", folder / "gray.jpg"
    bus.write_bytes(photos[0])
    gray.write_bytes(photos[2])
    texts = ["a red bus near the house.", "Cafés, BLUE"]
    script = str(ROOT / "examples" / "serve_saved_model.py")
    arguments = [str(folder / "float32"), str(bus), str(gray)]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--text", *texts])
    runpy.run_path(script, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    scores = (expected[0] @ expected[1].T)[[0, 2], :2]
    assert lines[0] == str(bus) and lines[3] == str(gray)
    for line, text, score in zip(
        lines[1:3] + lines[4:], texts * 2, scores.ravel(), strict=True
    ):
        number, name = line.split(maxsplit=1)
        assert name == text
        assert float(number) == pytest.approx(score, abs=6e-4)
