"""Measure the size and the latency of an export."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align_keras.serving.warmup import INPUTS
from align_keras.serving.warmup import sample_inputs


def size_of(path: str | Path) -> int:
    """Return the size in bytes of a file, or of all files in a directory."""
    path = Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def measure_latency(
    path: str | Path, batch_sizes: Sequence[int] = (1, 8), runs: int = 20
) -> list[dict]:
    """Time the signatures of a SavedModel in this process.

    A request contains JPEG files of 640 x 480 pixels, short texts, or both.
    Requests run one at a time. The first two calls of each signature and
    batch size are not timed.

    Args:
        path: string or `pathlib.Path`. The SavedModel.
        batch_sizes: sequence of ints. Number of images or texts in a request.
            Defaults to `(1, 8)`.
        runs: int. Number of timed calls for each signature and batch size.
            With fewer than 100, the 99th percentile is close to the slowest
            call. Defaults to `20`.

    Returns:
        List of dicts with `"signature"`, `"batch_size"`, and `"p50"` and
        `"p99"` in milliseconds.

    Raises:
        ValueError: `runs` or a batch size is not positive, or a signature
            takes other inputs than an export's.

    Example:

    ```python
    measure_latency("align_saved_model", batch_sizes=(1, 32))
    ```
    """
    for name, value in (
        ("runs", runs),
        *(("batch_sizes", size) for size in batch_sizes),
    ):
        if value < 1:
            raise ValueError(
                f"`{name}` must be positive. Received: {name}={value}"
            )
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  Registers the tokenizer's operations.

    # Keep a reference to the object as long as its functions are called.
    loaded = tf.saved_model.load(str(path))
    inputs = {
        name: list(function.structured_input_signature[1])
        for name, function in loaded.signatures.items()
    }
    for name, names in inputs.items():
        if not set(names) <= set(INPUTS):
            raise ValueError(
                f"The signature `{name}` of `{path}` cannot be timed, because "
                f"only the inputs {', '.join(INPUTS)} are known. Received: "
                f"{', '.join(names)}"
            )
    results = []
    for batch_size in batch_sizes:
        for name, values in sample_inputs(inputs, batch_size).items():
            values = {key: tf.constant(value) for key, value in values.items()}
            call = loaded.signatures[name]
            seconds = [_time(call, values) for _ in range(runs + 2)][2:]
            low, high = np.percentile(seconds, (50, 99)) * 1000
            results.append(
                {
                    "signature": name,
                    "batch_size": batch_size,
                    "p50": round(float(low), 2),
                    "p99": round(float(high), 2),
                }
            )
    return results


def _time(call, values):
    start = time.perf_counter()
    for output in call(**values).values():
        output.numpy()
    return time.perf_counter() - start
