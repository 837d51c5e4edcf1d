"""How sure a metric is, and whether two models differ."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

# Resamples of an interval; its ends then vary by a few percent of its width.
SAMPLES = 1000
CONFIDENCE = 0.95


def resample(
    metrics: Callable[[np.ndarray], dict[str, float]],
    units: int,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Compute metrics anew on units drawn with replacement.

    The draws follow from `units`, `samples` and `seed` alone. Two models that
    were measured on the same queries therefore see the same draws, and the
    difference of their values is that of a paired bootstrap.

    Args:
        metrics: callable. Takes an integer array `(units,)`, how often each
            unit was drawn, and returns a dictionary of floats.
        units: integer. Number of independent units, such as images, each with
            all of its captions.
        samples: integer. Number of resamples. Defaults to `1000`.
        seed: integer. Defaults to `0`.

    Returns:
        A dictionary from the name of a metric to a float64 array
        `(samples,)`. A metric that has no value on some draw is NaN there.

    Example:

    ```python
    hits = np.array([1, 0, 1, 1])
    resample(lambda w: {"accuracy": w @ hits / w.sum()}, len(hits))
    ```

    Reference:
        - [Efron, 1979](https://doi.org/10.1214/aos/1176344552)
    """
    rng = np.random.default_rng([seed, units])
    values: dict[str, list[float]] = {}
    for _ in range(samples):
        draws = rng.integers(units, size=units)
        weights = np.bincount(draws, minlength=units)
        for name, value in metrics(weights).items():
            values.setdefault(name, []).append(value)
    return {name: np.array(row) for name, row in values.items()}


def interval(values: ArrayLike, confidence: float = CONFIDENCE) -> list[float]:
    """Give the percentile interval of resampled values.

    Args:
        values: float array `(samples,)`. NaN is left out.
        confidence: float between 0 and 1. Defaults to `0.95`.

    Returns:
        A list of two floats, the lower and the upper end; NaN where there
        are no values.

    Raises:
        ValueError: `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(
            "`confidence` must lie between 0 and 1. "
            f"Received: confidence={confidence}"
        )
    values = np.asarray(values, "float64")
    values = values[~np.isnan(values)]
    if not len(values):
        return [float("nan")] * 2
    tail = (1 - confidence) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()


def p_value(differences: ArrayLike) -> float:
    """Two-sided share of resampled differences beyond zero.

    Args:
        differences: float array `(samples,)`, of metrics of two models on
            the same draws.

    Returns:
        A float. Never 0, since no number of draws shows that: one more draw
        is counted on either side.
    """
    differences = np.asarray(differences, "float64")
    differences = differences[~np.isnan(differences)]
    beyond = min(
        np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)
    )
    return min(1.0, 2 * (beyond + 1) / (len(differences) + 1))
