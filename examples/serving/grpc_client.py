"""Embed images and texts with TensorFlow Serving over gRPC.

    python grpc_client.py localhost:8500 vectors.npz bus.jpg --text "a bus"

This writes the arrays `images`, `valid` and `texts`. gRPC sends bytes without
encoding them, so it is faster than REST for many images. The script needs numpy
and tensorflow-serving-api: `pip install "align-keras[serving]"`.
"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc


def predict(service, model, signature, name, strings):
    """Send strings as one batch and return a dict of arrays."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(strings, tf.string))
    response = service.Predict(request, timeout=60)
    return {
        key: tf.make_ndarray(value) for key, value in response.outputs.items()
    }


def main():
    """Read the command line, query the server, and save the arrays."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server", help="such as localhost:8500")
    parser.add_argument("output", help="the .npz file to write")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", default=[])
    parser.add_argument("--model", default="align")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    channel = grpc.insecure_channel(args.server)
    service = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def embed(signature, name, strings):
        batches = [
            predict(service, args.model, signature, name, strings[start:end])
            for start in range(0, len(strings), args.batch_size)
            for end in [start + args.batch_size]
        ]
        return {
            key: np.concatenate([batch[key] for batch in batches])
            for key in (batches[0] if batches else ())
        }

    files = [path.read_bytes() for path in args.images]
    images = embed("encode_image", "image_bytes", files)
    arrays = {"images": images["embeddings"], "valid": images["valid"]}
    if args.text:
        texts = embed("encode_text", "texts", args.text)
        arrays["texts"] = texts["embeddings"]
    np.savez(args.output, **arrays)
    print(f"Wrote {len(files)} images and {len(args.text)} texts.")


if __name__ == "__main__":
    main()
