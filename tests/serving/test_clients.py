"""The clients of examples/serving, against a stand-in for the server."""

import json
import runpy
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from stand_in_server import Model
from stand_in_server import Refused
from stand_in_server import serve
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "serving"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batching"])
def server(folder, request):
    with serve(folder / "float32", "align", request.param) as addresses:
        yield addresses


@pytest.fixture
def files(photos, tmp_path):
    paths = [tmp_path / name for name in ("bus.jpg", "gray.jpg", "broken.jpg")]
    contents = (photos[0], photos[2], b"no image")
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def run_example(name, monkeypatch, *arguments):
    script = str(EXAMPLES / name)
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(script, run_name="__main__")


def test_grpc_client(server, files, model, tmp_path, monkeypatch):
    output = tmp_path / "vectors.npz"
    options = ["--text", "a red bus", "dog", "--batch-size", 2]
    run_example(
        "grpc_client.py", monkeypatch, server[0], output, *files, *options
    )
    with np.load(output) as arrays:
        assert arrays["valid"].tolist() == [True, True, False]
        for key, value in (
            ("images", model.encode_image(files[:2])),
            ("texts", model.encode_text(["a red bus", "dog"])),
        ):
            value = keras.ops.convert_to_numpy(value)
            np.testing.assert_allclose(
                arrays[key][:2], value, rtol=0, atol=1e-5
            )
        assert not arrays["images"][2].any()


def test_rest_client(server, files, model, monkeypatch, capsys):
    options = ["--text", "a red bus", "dog"]
    run_example("rest_client.py", monkeypatch, server[1], *files, *options)
    lines = capsys.readouterr().out.splitlines()
    images = keras.ops.convert_to_numpy(model.encode_image(files[:2]))
    texts = keras.ops.convert_to_numpy(model.encode_text(options[1:]))
    numbers = [float(lines[place].split()[0]) for place in (1, 2, 4, 5)]
    np.testing.assert_allclose(numbers, (images @ texts.T).ravel(), atol=6e-4)
    assert lines[6:] == [f"{files[2]}: not a readable image"]

    run_example("rest_client.py", monkeypatch, server[1], *files)
    lines = capsys.readouterr().out.splitlines()
    numbers = [float(lines[place].split()[0]) for place in (1, 2)]
    assert 1 >= numbers[0] >= numbers[1] > 0
    assert lines[1].split(maxsplit=1)[1] in ("bus", "dog", "red house")


def test_wrong_requests_to_rest(server):
    def status(body, path="align:predict"):
        request = urllib.request.Request(
            f"{server[1]}/v1/models/{path}", data=body
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert "error" in json.load(caught.value)
        return caught.value.code

    def ask(inputs, signature="encode_image"):
        body = {"signature_name": signature, "inputs": inputs}
        return json.dumps(body).encode()

    assert status(b"\xff\xd8 no JSON") == 400
    assert status(ask({"image_bytes": [3]})) == 400
    assert status(ask({"image_bytes": [["a"]]})) == 400
    assert status(ask({"pictures": ["a"]})) == 400
    assert status(ask({"texts": ["a"]}, "no_such_signature")) == 400
    assert status(ask({"texts": ["a"]}), "other:predict") == 404


def test_wrong_requests_to_grpc(server):
    with grpc.insecure_channel(server[0]) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "align"
        request.model_spec.signature_name = "encode_text"
        request.inputs["texts"].CopyFrom(tf.make_tensor_proto([1.0]))
        with pytest.raises(grpc.RpcError) as caught:
            service.Predict(request, timeout=60)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_batching_refuses_images_with_texts(folder, photos):
    """Rows of merged requests would be compared with one another."""
    inputs = {"image_bytes": photos[:2], "texts": ["a bus", "dog"]}
    served = Model(folder / "float32", "align", batching=True)
    with pytest.raises(Refused, match="0 dimensions"):
        served.predict("align", "serving_default", inputs)
    served = Model(folder / "float32", "align")
    assert served.predict("align", "serving_default", inputs)["valid"].shape


def test_model_config():
    config = text_format.Parse(
        (EXAMPLES / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    (entry,) = config.model_config_list.config
    assert (entry.name, entry.base_path) == ("align", "/models/align")
    assert entry.model_platform == "tensorflow"
