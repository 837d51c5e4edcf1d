"""Exports in each format, compared in its own runtime."""

import keras
import numpy as np
import pytest

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder

BACKEND = keras.config.backend()
NAMES = ("image_embeddings", "text_embeddings")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), name="images")
    features = keras.layers.Conv2D(6, 3)(images)
    return AlignDualEncoder(
        keras.Model(images, features), BertTextEncoder(50, 1, 2, 16, 32)
    )


@pytest.fixture
def expected(model, pairs):
    x = pairs(3, size=8)
    return x, model.predict(x, verbose=0)


def assert_same(found, expected):
    for name in NAMES:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-4, atol=1e-5
        )


def test_a_numeric_saved_model(model, expected, tmp_path, capsys):
    import tensorflow as tf

    x, y = expected
    if BACKEND == "tensorflow":  # JAX must know that lengths are below 512.
        model.export(str(tmp_path / "saved"), verbose=False)
        served = tf.saved_model.load(str(tmp_path / "saved"))
        assert_same(served.serve(x), y)
    signature = {
        name: keras.InputSpec(shape=(3, *value.shape[1:]), dtype=value.dtype)
        for name, value in x.items()
    }
    model.export(
        str(tmp_path / "fixed"), verbose=False, input_signature=[signature]
    )
    served = tf.saved_model.load(str(tmp_path / "fixed"))
    assert_same(served.serve(x), y)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="converts its graphs")
def test_an_onnx_file(model, expected, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    x, y = expected
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    inputs = {}
    for node in session.get_inputs():
        (name,) = [n for n in x if n in node.name]
        inputs[node.name] = x[name]
    outputs = session.run(None, inputs)
    names = [node.name for node in session.get_outputs()]
    by_value = sorted(
        zip(names, outputs, strict=True), key=lambda pair: pair[0]
    )
    found = dict(zip(NAMES, (value for _, value in by_value), strict=True))
    assert_same(found, y)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="converts its graphs")
def test_a_litert_file(model, expected, tmp_path):
    import tensorflow as tf

    x, y = expected
    path = str(tmp_path / "model.tflite")
    signature = {
        name: keras.InputSpec(shape=value.shape, dtype=value.dtype)
        for name, value in x.items()
    }
    model.export(
        path, format="litert", verbose=False, input_signature=[signature]
    )
    runner = tf.lite.Interpreter(path).get_signature_runner()
    # LiteRT numbers the inputs, in the order of their names.
    nodes = sorted(runner.get_input_details())
    inputs = {n: x[k] for n, k in zip(nodes, sorted(x), strict=True)}
    outputs = [value for _, value in sorted(runner(**inputs).items())]
    assert_same(dict(zip(NAMES, outputs, strict=True)), y)
