"""Average the weights of a fine-tuned model and the model it came from."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from align_keras.io.mirrors import stored
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.models.towers import require_floats
from align_keras.training.freezing import named_variables

# Settings that may differ between two models that are averaged: names, and how
# they were trained.
FREE = {
    "name",
    "trainable",
    "dtype",
    "dropout",
    "batch_norm",
    "virtual_batch_size",
    "initial_temperature",
    "image_shape",
}


@stored("destination")
def average(
    first: str,
    second: str,
    weight: float,
    destination: str | Path | None = None,
) -> Any:
    """Average the weights of two models of the same architecture.

    An average of a model before and after fine-tuning often keeps the
    abilities of the original and nearly all that fine-tuning added (WiSE-FT).

    Weights and the moving means of batch normalisation are averaged directly,
    and the temperature by its logarithm. For the moving variances, the
    standard deviations are averaged: two models of common origin respond to
    an input almost alike, and the standard deviation of a weighted sum of
    such responses is nearly the weighted sum of their standard deviations.
    Statistics that fine-tuning did not change stay the same.

    The preprocessor is that of the second model. Sizes may differ between the
    models; the vocabulary and the scale of pixels may not.

    Args:
        first: string or `AlignDualEncoder`. A model, or what `from_preset`
            takes, such as the model before fine-tuning.
        second: string or `AlignDualEncoder`. The model after fine-tuning.
        weight: float from 0 to 1. Share of the second model.
        destination: string or `pathlib.Path`. Preset directory to write.
            Defaults to `None`: nothing is written.

    Returns:
        A new `AlignDualEncoder`. The given models are not changed.

    Raises:
        ValueError: The models differ in their architecture, vocabulary or
            scale of pixels, or one is quantised; the message says which.

    Example:

    ```python
    model = average("hf://kakaobrain/align-base", "run/model", 0.4)
    ```

    Reference:
        - [Wortsman et al., 2022](https://arxiv.org/abs/2109.01903)
    """
    if not 0 <= weight <= 1:
        raise ValueError(
            f"`weight` must be from 0 to 1. Received: weight={weight!r}"
        )
    first, second = map(_open, (first, second))
    require_alike(first, second)
    mixed = AlignDualEncoder.from_config(second.get_config())
    mixed.preprocessor = second.preprocessor
    mix_weights(_values(first), _values(second), weight, mixed)
    if destination is not None:
        mixed.save_to_preset(destination)
    return mixed


def _open(model):
    if isinstance(model, keras.Model):
        return model
    return AlignDualEncoder.from_preset(presets.require_weights(model))


def _values(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


def mix_weights(first, second, weight, model):
    """Assign the average of two lists of weights to a model.

    Args:
        first: list of arrays, in the order of `model.weights`.
        second: list of arrays.
        weight: float. Share of `second`.
        model: `keras.Model`.
    """
    for variable, one, other in zip(model.weights, first, second, strict=True):
        one, other = (np.asarray(value, "float64") for value in (one, other))
        if variable.path.endswith("/moving_variance"):
            mixed = _mix(np.sqrt(one), np.sqrt(other), weight) ** 2
        else:
            mixed = _mix(one, other, weight)
        variable.assign(mixed.astype(variable.dtype))


def _mix(first, second, weight):
    # In this form, equal values stay the same bit for bit.
    return first + weight * (second - first)


def require_alike(first, second):
    """Refuse to average models whose weights do not correspond.

    Args:
        first: `AlignDualEncoder`.
        second: `AlignDualEncoder`.

    Raises:
        ValueError: They differ, or one is quantised; the message names the
            difference.
    """
    for model in (first, second):
        require_floats(model, "averaged")
    # The image size does not matter for weights, nor which were trained.
    configs = [m.get_config() for m in (first, second)]
    for config in configs:
        config.pop("preprocessor", None)
        config.pop("frozen_layers", None)
    one, other = (dict(_flat(config)) for config in configs)
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            _refuse(name, one.get(name), other.get(name))
    shapes = [
        {path: tuple(v.shape) for path, v in named_variables(m)}
        for m in (first, second)
    ]
    for one, other in zip(shapes[0].values(), shapes[1].values(), strict=True):
        if one != other:
            _refuse("shapes of weights", one, other)
    _require_inputs_alike(first.preprocessor, second.preprocessor)


def _require_inputs_alike(first, second):
    if first is None or second is None:
        if first is not second:
            _refuse("preprocessors", first, second)
        return
    tokens = [
        p.tokenizer and p.tokenizer.get_vocabulary() for p in (first, second)
    ]
    if tokens[0] != tokens[1]:
        sizes = [len(t or ()) for t in tokens]
        if sizes[0] != sizes[1]:
            _refuse("size of the vocabulary", *sizes)
        place = next(
            i
            for i, pair in enumerate(zip(*tokens, strict=True))
            if pair[0] != pair[1]
        )
        _refuse(
            f"token {place} of the vocabulary",
            tokens[0][place],
            tokens[1][place],
        )
    for part, names in (
        ("tokenizer", ("lowercase", "strip_accents", "split_on_cjk")),
        ("image_converter", ("scale", "offset")),
    ):
        configs = [
            getattr(p, part).get_config() if getattr(p, part) else {}
            for p in (first, second)
        ]
        for name in names:
            values = [config.get(name) for config in configs]
            if np.any(np.asarray(values[0]) != np.asarray(values[1])):
                _refuse(f"{part}.{name}", *values)


def _refuse(name, first, second):
    raise ValueError(
        "Two models can be averaged only if they share one architecture, one "
        "vocabulary and one scale of pixels: average a model with the one that "
        f"it was fine-tuned from. They differ in `{name}`: {first!r} and "
        f"{second!r}."
    )


def _flat(config, path=""):
    """Yield the fields of a nested config that must be equal."""
    for name, value in config.items():
        if name in FREE or name in ("module", "registered_name"):
            continue
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from _flat(value, where.removesuffix(".config"))
        else:
            yield where, tuple(value) if isinstance(value, list) else value
