"""Compute confidence intervals and p-values by the bootstrap."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

# With this many, the ends of an interval vary by a few percent of its width.
SAMPLES = 1000
CONFIDENCE = 0.95


def resample(
    metrics: Callable[[np.ndarray], dict[str, float]],
    units: int,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Compute metrics again on units drawn with replacement.

    The draws depend only on `units`, `samples` and `seed`. Two models that
    were measured on the same queries therefore see the same draws, and the
    differences of their values form a paired bootstrap.

    Args:
        metrics: callable. Takes an integer array `(units,)`, how often each
            unit was drawn, and returns a dictionary of floats.
        units: integer. Number of independent units, such as images with all
            their captions.
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
    """Compute the percentile interval of resampled values.

    Args:
        values: float array `(samples,)`. NaN values are ignored.
        confidence: float between 0 and 1. Defaults to `0.95`.

    Returns:
        A list of two floats, the lower and the upper end; both NaN if there
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
    """Compute the two-sided p-value of resampled differences.

    Args:
        differences: float array `(samples,)`. Differences of a metric of two
            models on the same draws.

    Returns:
        A float. It is never 0, which no number of draws could show: one more
        draw is counted on each side.
    """
    differences = np.asarray(differences, "float64")
    differences = differences[~np.isnan(differences)]
    beyond = min(
        np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)
    )
    return min(1.0, 2 * (beyond + 1) / (len(differences) + 1))
