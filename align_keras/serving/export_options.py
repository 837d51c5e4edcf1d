"""Check the options of an export; nothing here imports Keras."""

from typing import Any

# Formats whose runtimes compute in 8 bits.
QUANTIZED = ("onnx", "openvino")


def check_export(
    form: str, precision: str | None, calibration: Any, **options: Any
) -> None:
    """Refuse options that do not fit the format of an export.

    Args:
        form: string. See `align_keras.serving.export`.
        precision: string or `None`. See `align_keras.serving.export`.
        calibration: The images and captions of `"int8"`, or `None`.
        **options: Options of the format `"saved_model"`, or `None` for those
            that are not given.

    Raises:
        ValueError: An option does not fit, or a value is wrong.
    """
    _check_options(form, options)
    _check_precision(form, precision, calibration)


def _check_precision(form, precision, calibration):
    if precision != "int8":
        if calibration is not None:
            raise ValueError(
                "--calibrate is for --precision int8. "
                f"Received: --precision {precision}"
            )
        return
    if form not in QUANTIZED:
        raise ValueError(
            "--precision int8 needs a runtime that computes in 8 bits: choose "
            f"--format {' or '.join(QUANTIZED)}. Received: --format {form}"
        )
    if calibration is None:
        raise ValueError(
            "--precision int8 needs images with captions like those that the "
            "model will see, from which it takes the ranges of the integers: "
            "name them with --calibrate."
        )


def _check_options(form, options):
    def word(name):
        return f"--{name.replace('_', '-')}"

    given = [name for name, value in options.items() if value is not None]
    if form != "saved_model" and given:
        raise ValueError(
            f"{word(given[0])} is an option of the format saved_model. "
            f"Received: --format {form}"
        )
    for name in ("templates", "top_k"):
        if name in given and "classes" not in given:
            raise ValueError(
                f"{word(name)} applies to the signature classify: name a file "
                "with --classes too."
            )
    if any(size < 1 for size in options["batch_sizes"] or ()):
        raise ValueError(
            "--batch-sizes must be positive. "
            f"Received: {options['batch_sizes']}"
        )
    if options["runs"] is not None and options["runs"] < 0:
        raise ValueError(
            f"--runs must not be negative. Received: {options['runs']}"
        )
