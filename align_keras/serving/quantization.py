"""Quantize exported towers to 8-bit integers, and measure what that changes."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from typing import NamedTuple

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.similarity import unit_rows
from align_keras.io.optional import OptionalModule

quantizer = OptionalModule("onnxruntime.quantization", extra="onnx")
preparation = OptionalModule(
    "onnxruntime.quantization.shape_inference", extra="onnx"
)

logger = logging.getLogger("align_keras")

# Pairs whose values set the ranges of the integers, and pairs on which both
# precisions are compared. They are drawn from the first pairs of the data.
CALIBRATION_PAIRS = 128
TEST_PAIRS = 500
_DRAWN_FROM = 20_000

_PRODUCTS = ["Conv", "MatMul", "Gemm"]
_BETWEEN_CONVOLUTIONS = ["Sigmoid", "Mul", "Add", "ReduceMean"]


class Sample(NamedTuple):
    """Preprocessed pairs, alike in both towers.

    Attributes:
        inputs: dict from the name of each tower to a dict of arrays, with a
            row for each pair.
        skipped: int. How many drawn images did not decode.
        without_caption: int. How many images had no caption.
    """

    inputs: dict[str, dict[str, np.ndarray]]
    skipped: int
    without_caption: int

    def batches(
        self, tower: str, first: int, last: int, size: int = 1
    ) -> list[dict]:
        """Cut some of the pairs into batches of one tower."""
        return [
            {
                name: values[start : min(start + size, last)]
                for name, values in self.inputs[tower].items()
            }
            for start in range(first, last, size)
        ]

    def __len__(self):
        return len(self.inputs["image_encoder"]["images"])


def draw_sample(data: Any, embedder: Embedder, tokenize: Callable) -> Sample:
    """Draw pairs at random and preprocess them.

    Args:
        data: `align_keras.evaluation.datasets.DataSet` with captions. Of each
            image, the first caption is used.
        embedder: `Embedder` of the model.
        tokenize: callable from a list of strings to a dict of arrays.

    Returns:
        `Sample`, in a random order.

    Raises:
        ValueError: Fewer than two images have a caption and decode.
    """
    draw, drawn, without_caption = random.Random(0), [], 0
    for number, (key, image, captions) in enumerate(data.examples()):
        if number == _DRAWN_FROM:
            break
        if not captions:
            without_caption += 1
            continue
        drawn.append((draw.random(), key, image, captions[0]))
        if len(drawn) > 2 * (CALIBRATION_PAIRS + TEST_PAIRS):
            drawn = _smallest(drawn)
    images, texts, skipped = [], [], 0
    for _, key, image, caption in _smallest(drawn):
        try:
            images.append(embedder.read(image() if callable(image) else image))
        except ValueError as error:
            logger.warning("Left out the image `%s`: %s.", key, error)
            skipped += 1
        else:
            texts.append(caption)
    if len(texts) < 2:
        raise ValueError(
            "Quantization needs at least two images with captions, one to "
            "calibrate and one to compare. "
            f"Received: `{data.name}`, with {len(texts)}"
        )
    tokens = {name: np.asarray(rows) for name, rows in tokenize(texts).items()}
    inputs = {
        "image_encoder": {"images": np.stack(images)},
        "text_encoder": tokens,
    }
    return Sample(inputs, skipped, without_caption)


def _smallest(drawn):
    """Keep the pairs with the smallest draws, which is a random sample."""
    drawn = sorted(drawn, key=lambda pair: pair[0])
    return drawn[: CALIBRATION_PAIRS + TEST_PAIRS]


def split_sample(sample: Sample) -> int:
    """Return how many of the pairs calibrate; the others compare."""
    return min(CALIBRATION_PAIRS, len(sample) // 2)


def quantize(
    model: Any, path: str | Path, batches: list[dict], between: bool
) -> None:
    """Quantize a tower.

    Weights become signed integers with a scale for each channel, and inputs
    of products unsigned integers, whose range is that of the batches.

    Args:
        model: `onnx.ModelProto` of the tower in float32.
        path: string or `pathlib.Path`. The ONNX file to write.
        batches: list of dicts of arrays, the inputs of the tower. The values
            of all operations are in memory at once, which for B7 is more than
            a GiB for each image of a batch.
        between: bool. Whether also what lies between the products takes and
            returns integers. ONNX Runtime needs this to convolve integers,
            while OpenVINO, and products of matrices in both, round their
            results themselves. It costs precision, most in the normalisations
            of a text tower.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    rows = iter(batches)

    types, options = _PRODUCTS, {}
    if between:
        types = _PRODUCTS + _BETWEEN_CONVOLUTIONS
    else:
        options["OpTypesToExcludeOutputQuantization"] = _PRODUCTS
    with TemporaryDirectory() as scratch:
        exact = Path(scratch, "exact.onnx")
        exact.write_bytes(model.SerializeToString())
        prepared = Path(scratch, "prepared.onnx")
        # Adds shifts to convolutions as biases, as the runtime will do.
        preparation.quant_pre_process(exact, prepared, skip_symbolic_shape=True)
        quantizer.quantize_static(
            prepared,
            path,
            SimpleNamespace(get_next=lambda: next(rows, None)),
            quant_format=quantizer.QuantFormat.QDQ,
            op_types_to_quantize=types,
            per_channel=True,
            activation_type=quantizer.QuantType.QUInt8,
            weight_type=quantizer.QuantType.QInt8,
            extra_options=options,
        )


def compare_towers(
    sample: Sample, towers: dict[str, Callable], exact: dict[str, Callable]
) -> dict:
    """Compare quantized towers with those in float32, on pairs held out.

    Args:
        sample: `Sample`, of which the first pairs calibrated.
        towers: dict from the name of each tower to a callable from a dict of
            arrays to embeddings.
        exact: the same in float32.

    Returns:
        Dict with `"pairs"`; `"images_skipped"`, which did not decode;
        `"images_without_caption"`; `"image_cosine"` and
        `"text_cosine"`, each a dict with the `"mean"` and the `"min"` of the
        cosines of both precisions; and `"recall"`, a dict from a name such as
        `"image_to_text_recall@1"` to a dict with the recall, `"float32"` and
        `"int8"`, among these pairs.
    """
    first, last = split_sample(sample), len(sample)
    vectors = {
        (name, precision): unit_rows(
            np.concatenate(
                [run(batch) for batch in sample.batches(name, first, last, 16)]
            )
        )
        for precision, runs in (("float32", exact), ("int8", towers))
        for name, run in runs.items()
    }
    result: dict[str, Any] = {
        "pairs": last - first,
        "images_skipped": sample.skipped,
        "images_without_caption": sample.without_caption,
    }
    for name in towers:
        cosines = np.sum(vectors[name, "float32"] * vectors[name, "int8"], -1)
        result[f"{name.partition('_')[0]}_cosine"] = {
            "mean": float(cosines.mean()),
            "min": float(cosines.min()),
        }
    result["recall"] = {
        f"{query}_to_{found}_recall@{k}": {
            precision: _recall(
                vectors[f"{query}_encoder", precision],
                vectors[f"{found}_encoder", precision],
                k,
            )
            for precision in ("float32", "int8")
        }
        for query, found in (("image", "text"), ("text", "image"))
        for k in (1, 5)
    }
    return result


def _recall(queries, found, k):
    similarities = queries.astype("float64") @ found.T
    own = np.diag(similarities)[:, None]
    # As in the evaluations, the first of equal ones comes first.
    earlier = np.tri(*similarities.shape, k=-1, dtype=bool)
    before = (similarities > own) | (similarities == own) & earlier
    return float(np.mean(np.sum(before, -1) < k))
