"""Requests that TensorFlow Serving runs before a model takes real ones."""

import importlib.util
import io

import numpy as np
from PIL import Image

from align_keras.io.atomic import atomic_file

# Where TensorFlow Serving looks for them, inside of a SavedModel.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def can_write_warmup():
    """Whether tensorflow-serving-api, which describes requests, is there."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def sample_picture(height, width):
    """Return the bytes of a JPEG file with some detail, always the same."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    picture = Image.fromarray(noise.astype("uint8"))
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sample_inputs(signatures, rows, side=(480, 640)):
    """Return inputs for each signature that takes pictures or texts.

    Args:
        signatures: dict from a name to its list of input names.
        rows: int. Pictures or texts in the request.
        side: pair of ints. Height and width of the pictures.

    Returns:
        Dict from the name of a signature to a dict of lists.
    """
    values = {
        "image_bytes": [sample_picture(*side)] * rows,
        "texts": ["a red bus in front of a station"] * rows,
    }
    return {
        signature: {name: values[name] for name in names}
        for signature, names in signatures.items()
    }


def write_warmup_requests(directory, signatures):
    """Write one request for each signature into a SavedModel.

    Args:
        directory: string or `pathlib.Path`. The SavedModel.
        signatures: dict from a name to its list of input names.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis import predict_pb2
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Warm-up requests need tensorflow-serving-api: "
            '`pip install "align-keras[serving]"`.'
        ) from error
    import tensorflow as tf

    path = f"{directory}/{WARMUP_FILE}"
    with atomic_file(path) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for name, inputs in sample_inputs(signatures, 1).items():
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = name
                for key, values in inputs.items():
                    request.inputs[key].CopyFrom(
                        tf.make_tensor_proto(values, tf.string)
                    )
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())
