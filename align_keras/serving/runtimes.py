"""Run exported towers in ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from align_keras.io.optional import OptionalModule

onnxruntime = OptionalModule("onnxruntime", extra="onnx")
openvino = OptionalModule("openvino", extra="openvino")


def open_tower(path: str | Path) -> Callable[[dict], np.ndarray]:
    """Open a tower that `export_towers` wrote.

    Args:
        path: string or `pathlib.Path`. A file that ends in `.onnx` or
            `.xml`, the latter with its `.bin` file beside it.

    Returns:
        A callable from a dict of arrays, see `export_towers`, to float32
        embeddings `(batch, embedding_dim)`. It computes on the CPU.

    Raises:
        ImportError: The runtime of this format is not installed.
        ValueError: The file has another suffix.

    Example:

    ```python
    encode_image = open_tower("align_onnx/image_encoder.onnx")
    encode_image({"images": images})
    ```
    """
    path = Path(path)
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(
            path, providers=["CPUExecutionProvider"]
        )
        return lambda inputs: session.run(["embeddings"], inputs)[0]
    if path.suffix == ".xml":
        # Otherwise OpenVINO rounds to 16 bits where a processor has such
        # numbers, and the embeddings differ from those of the model.
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", options)
        return lambda inputs: compiled(inputs)["embeddings"]
    raise ValueError(
        f"An exported tower ends in `.onnx` or `.xml`. Received: `{path}`"
    )
