"""TensorFlow Serving's two protocols in front of a SavedModel, for clients.

It follows the documented forms of `Predict` and of `:predict` with `inputs`
in columns. It is not TensorFlow Serving: one model, no versions, and of
batching only the checks that the server makes on each request it could merge.
"""

import base64
import concurrent.futures
import contextlib
import functools
import http.server
import json
import threading

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc


class Refused(Exception):
    """A request that the server answers with an error."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


@functools.cache
def load(path):
    """Load a SavedModel once, as this takes seconds."""
    return tf.saved_model.load(str(path))


class Model:
    """Runs the signatures of a SavedModel by their names."""

    def __init__(self, path, name, batching=False):
        self.name = name
        self._batching = batching
        self._signatures = load(path).signatures

    def predict(self, name, signature, inputs):
        if name != self.name:
            raise Refused("NOT_FOUND", f"Servable not found: {name}")
        function = self._signatures.get(signature or "serving_default")
        if function is None:
            raise Refused("INVALID_ARGUMENT", f"no signature {signature}")
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise Refused("INVALID_ARGUMENT", f"expected inputs {list(specs)}")
        try:
            tensors = {
                key: tf.convert_to_tensor(inputs[key], spec.dtype)
                for key, spec in specs.items()
            }
            outputs = function(**tensors)
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise Refused("INVALID_ARGUMENT", str(error)) from error
        if self._batching:
            _require_batchable(tensors, outputs)
        return outputs


def _require_batchable(inputs, outputs):
    """What the server's `BatchingSession` and `SplitOutputTensors` check."""
    sizes = {len(value) for value in inputs.values()}
    if len(sizes) > 1:
        raise Refused(
            "INVALID_ARGUMENT",
            "Batching session Run() input tensors must have equal "
            "0th-dimension size",
        )
    for value in outputs.values():
        if not value.shape.rank:
            raise Refused(
                "FAILED_PRECONDITION",
                "Batched output tensor has 0 dimensions",
            )
        if {len(value)} != sizes:
            raise Refused(
                "FAILED_PRECONDITION",
                "Batched output tensor's 0th dimension does not equal the sum "
                "of the 0th dimension sizes of the input tensors",
            )


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model):
        self._model = model

    def Predict(self, request, context):  # noqa: N802  The protocol's name.
        spec = request.model_spec
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        try:
            outputs = self._model.predict(
                spec.name, spec.signature_name, inputs
            )
        except Refused as error:
            context.abort(getattr(grpc.StatusCode, error.kind), str(error))
        response = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response


def _from_json(value):
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value


def _to_json(value):
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _handler(model):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802  The standard library's name.
            name = self.path.removeprefix("/v1/models/")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                request = json.loads(body)
                outputs = model.predict(
                    name.removesuffix(":predict"),
                    request.get("signature_name"),
                    {k: _from_json(v) for k, v in request["inputs"].items()},
                )
                answer = {
                    key: _to_json(value.numpy().tolist())
                    for key, value in outputs.items()
                }
                self._answer(200, {"outputs": answer})
            except Refused as error:
                status = 404 if error.kind == "NOT_FOUND" else 400
                self._answer(status, {"error": str(error)})
            except (ValueError, KeyError, AttributeError) as error:
                self._answer(400, {"error": repr(error)})

        def _answer(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


@contextlib.contextmanager
def serve(path, name, batching=False):
    """Yield the gRPC address and the URL of a server on this machine."""
    model = Model(path, name, batching)
    workers = concurrent.futures.ThreadPoolExecutor(2)
    rpc = grpc.server(workers)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _Service(model), rpc
    )
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(model))
    thread = threading.Thread(target=rest.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{rest.server_port}"
    finally:
        rest.shutdown()
        rest.server_close()
        thread.join()
        rpc.stop(None).wait()
        workers.shutdown()
