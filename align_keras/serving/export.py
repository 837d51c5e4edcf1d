"""Export the model of a preset, and measure the export's size and latency."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_keras.classes import read_classes
from align_keras.classes import read_templates
from align_keras.io.mirrors import reads
from align_keras.io.mirrors import stored
from align_keras.models import AlignDualEncoder
from align_keras.models.presets import require_weights
from align_keras.serving.export_options import check_export
from align_keras.serving.latency import measure_latency
from align_keras.serving.latency import size_of
from align_keras.serving.portable import export_quantized_towers
from align_keras.serving.portable import export_towers
from align_keras.serving.saved_model import export_saved_model
from align_keras.serving.towers import at_precision
from align_keras.serving.warmup import can_write_warmup

logger = logging.getLogger("align_keras")


@reads("classes", "templates")
@stored("output")
def export(
    preset: str | Path,
    output: str | Path,
    form: str = "saved_model",
    precision: str | None = None,
    classes: str | Path | None = None,
    templates: str | Path | None = None,
    top_k: int | None = None,
    max_pixels: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    runs: int | None = None,
    calibration: Any = None,
) -> dict:
    """Export the model of a preset, then measure the export.

    Args:
        preset: string. What `AlignDualEncoder.from_preset` takes, with
            weights.
        output: string or `pathlib.Path`. The directory to write.
        form: string, `"saved_model"`, `"onnx"`, `"openvino"` or `"litert"`.
            The arguments from `classes` to `runs` apply only to
            `"saved_model"`, the default.
        precision: string, `"float32"`, `"bfloat16"` or `"int8"`. The latter
            is a precision of `"onnx"` and `"openvino"`. Defaults to `None`:
            the precision of the preset.
        classes: string or `pathlib.Path`. A file for
            `align_keras.classes.read_classes`. Defaults to `None`.
        templates: string or `pathlib.Path`. A file for
            `align_keras.classes.read_templates`. Defaults to `None`: the
            templates in `classes`, or the bare name.
        top_k: int. See `export_saved_model`.
        max_pixels: int. See `export_saved_model`.
        batch_sizes: sequence of ints. Batch sizes to time. Defaults to
            `None`: 1 and 8.
        runs: int. Number of timed requests for each signature and batch size;
            0 measures nothing. Defaults to `None`: 20.
        calibration: `align_keras.evaluation.datasets.DataSet` with captions,
            for `"int8"`. See `export_quantized_towers`.

    Returns:
        Dict with `"output"`, `"format"`, `"embedding_dim"` and `"bytes"`. For
        a SavedModel also `"signatures"`, `"warmup"` (whether warm-up requests
        were written) and `"latency_ms"` (the rows of `measure_latency`); for
        other formats `"files"`, and in 8 bits also what `compare_towers`
        returns.

    Raises:
        ValueError: The preset has no weights, an option does not fit the
            format, or a value is wrong.
    """
    options: dict[str, Any] = {
        "classes": classes,
        "templates": templates,
        "top_k": top_k,
        "max_pixels": max_pixels,
        "batch_sizes": batch_sizes,
        "runs": runs,
    }
    check_export(form, precision, calibration, **options)
    if precision == "bfloat16":
        logger.warning(
            "bfloat16 halves the files, but on CPUs it is slower than float32 "
            "for texts, and for images unless the processor has AVX-512 BF16 "
            "and a request holds 8 of them or more: compare the times with "
            "those of --precision float32."
        )
    settings: dict[str, Any] = {
        name: options[name]
        for name in ("top_k", "max_pixels")
        if options[name] is not None
    }
    # Read these before the model, so that mistakes in them show at once.
    if classes is not None:
        found = read_classes(classes, distinct=True)
        settings["classes"] = found.names
        settings["templates"] = found.templates or ("{}",)
    if templates is not None:
        settings["templates"] = read_templates(templates)
    model = AlignDualEncoder.from_preset(require_weights(preset))
    result = {
        "output": str(output),
        "format": form,
        "embedding_dim": model.embedding_dim,
    }
    if precision == "int8":
        model = at_precision(model, "float32")
        found = export_quantized_towers(model, output, form, calibration)
        return {**result, **found, "bytes": size_of(output)}
    if form != "saved_model":
        model = at_precision(model, precision)
        result["files"] = export_towers(model, output, form)
        return {**result, "bytes": size_of(output)}
    inputs = export_saved_model(model, output, precision, **settings)
    runs = 20 if runs is None else runs
    rows = measure_latency(output, batch_sizes or (1, 8), runs) if runs else []
    return {
        **result,
        "signatures": list(inputs),
        "warmup": can_write_warmup(),
        "bytes": size_of(output),
        "latency_ms": rows,
    }
