"""Write requests with which TensorFlow Serving warms a model up."""

import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image

from align_keras.io.atomic import atomic_file
from align_keras.io.optional import OptionalModule

predict_pb2 = OptionalModule(
    "tensorflow_serving.apis.predict_pb2", extra="serving"
)
prediction_log_pb2 = OptionalModule(
    "tensorflow_serving.apis.prediction_log_pb2", extra="serving"
)

# The inputs of an export, of which its signatures take one or both.
INPUTS = ("image_bytes", "texts")
# Where TensorFlow Serving looks for them in a SavedModel.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def can_write_warmup() -> bool:
    """Return whether tensorflow-serving-api is installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def sample_image(height: int, width: int) -> bytes:
    """Return the bytes of a JPEG file with some detail.

    The same size always gives the same bytes.
    """
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    image = Image.fromarray(noise.astype("uint8"))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sample_inputs(
    signatures: dict[str, list[str]],
    rows: int,
    side: tuple[int, int] = (480, 640),
) -> dict[str, dict]:
    """Return inputs for each signature.

    Args:
        signatures: dict from a name to its list of input names, which must
            be among `INPUTS`.
        rows: int. Number of images or texts in the request.
        side: pair of ints. Height and width of the images. Defaults to
            `(480, 640)`.

    Returns:
        Dict from the name of a signature to a dict of lists, one for each
        input.
    """
    values = {
        "image_bytes": [sample_image(*side)] * rows,
        "texts": ["a red bus in front of a station"] * rows,
    }
    return {
        signature: {name: values[name] for name in names}
        for signature, names in signatures.items()
    }


def write_warmup_requests(
    directory: str | Path, signatures: dict[str, list[str]]
) -> None:
    """Write one request for each signature into a SavedModel.

    Args:
        directory: string or `pathlib.Path`. The SavedModel.
        signatures: dict from a name to its list of input names.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
    """
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
