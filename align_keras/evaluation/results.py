"""Hold, save and load results: metrics as JSON, outcomes as NumPy arrays."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import resample
from align_keras.io.atomic import atomic_file
from align_keras.io.fingerprints import check_digest
from align_keras.io.fingerprints import file_digest
from align_keras.io.json_files import check_form
from align_keras.io.json_files import is_count
from align_keras.io.json_files import is_number
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json

# Field of the JSON file with the digest of the outcomes.
_DIGEST = "outcomes_sha256"


# What error messages call a result, and what they advise.
_ABOUT = "result of `align-keras evaluate`", "Evaluate again."


def _is_metric(value):
    # `null` stands for NaN.
    return value is None or is_number(value)


# The form of the fields that are read again.
_FORM = {
    "task": str,
    "dataset?": str,
    "model?": str,
    "intervals?": dict,
    "ks?": [is_count],
    **dict.fromkeys(("tasks?", "languages?", "categories?"), [str]),
    **dict.fromkeys(("tasks_missing?", "tasks_failed?"), {"*": str}),
    f"{_DIGEST}?": lambda digest: digest is None or isinstance(digest, str),
}


class Result(dict):
    """The metrics of one evaluation, and the outcome of each query.

    A dictionary that JSON can hold. `"task"`, `"dataset"` and `"model"` say
    what was measured; each metric has an entry under its name; `"intervals"`
    maps each metric to the ends of its 95% interval; the other entries are
    counts and options.

    Args:
        values: dictionary. Values that JSON can hold.
        outcomes: dictionary of arrays. One value for each query, from which
            the metrics and their resamples are computed. They are saved next
            to the JSON file as `.npz`, for `compare_results`. Defaults to
            `None`, no outcomes.
    """

    def __init__(
        self, values: dict, outcomes: dict[str, np.ndarray] | None = None
    ):
        super().__init__(values)
        self.outcomes = outcomes or {}

    def save(self, path: str | Path) -> None:
        """Write `path`, and the outcomes, if any, next to it.

        Raises:
            ValueError: the name does not end in `.json`.
        """
        path = check_name(path)
        # The JSON file is written last, with the digest of the outcomes. So if
        # it exists, the result is complete, and outcomes that somebody else
        # wrote are detected.
        outcomes = path.with_suffix(".npz")
        digest = None
        if self.outcomes:
            with atomic_file(outcomes) as temporary:
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, **dict[str, Any](self.outcomes))
                digest = file_digest(temporary)
        else:
            outcomes.unlink(missing_ok=True)
        write_json(path, {**plain(self), _DIGEST: digest})

    def to_json(self) -> str:
        """Return the result as JSON text, with `null` for NaN."""
        return json.dumps(plain(self), indent=2, allow_nan=False)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not the result of an evaluation, or the
                outcomes next to it belong to another result.
        """
        path = check_name(path)
        values = read_object(path, _FORM, *_ABOUT)
        measured = dict.fromkeys(values.get("intervals", ()), _is_metric)
        check_form(values, measured, path, *_ABOUT)
        outcomes = path.with_suffix(".npz")
        # Older results have no digest; any file of that name is accepted.
        digest = values.pop(_DIGEST, "")
        if digest is None or not outcomes.is_file():
            return cls(values)
        if digest:
            check_digest(outcomes, digest, f"evaluate again into `{path}`")
        try:
            with np.load(outcomes, allow_pickle=False) as arrays:
                return cls(values, dict(arrays))
        except (EOFError, TypeError, ValueError, BadZipFile):
            raise ValueError(
                f"`{outcomes}` is damaged: evaluate again into `{path}`."
            ) from None

    @property
    def metrics(self) -> dict[str, float]:
        """Only the metrics, without counts and options."""
        return {name: self[name] for name in self.get("intervals", {})}


def check_name(path: str | Path) -> Path:
    """Return the path of a result, after checking that it ends in `.json`.

    With other endings, two results could share one `.npz` file.
    """
    if Path(path).suffix.lower() != ".json":
        raise ValueError(
            f"The name of a result must end in `.json`. Received: `{path}`"
        )
    return Path(path)


def summarize(
    task: str,
    metrics: Callable[..., dict[str, float]],
    outcomes: dict[str, np.ndarray],
    units: int,
    samples: int = SAMPLES,
    **values: Any,
) -> Result:
    """Compute metrics with their intervals.

    Args:
        task: string. The name of the evaluation.
        metrics: callable. Takes `outcomes` and the weights of the units, or
            `None`, and returns a dictionary of floats.
        outcomes: dictionary of arrays. See `Result`.
        units: integer. Number of units that the bootstrap draws.
        samples: integer. Number of resamples; 0 for no intervals. Defaults to
            `1000`.
        **values: Other entries of the result.

    Returns:
        A `Result`.
    """
    found = metrics(outcomes, None)
    draws = resample(lambda w: metrics(outcomes, w), units, samples)
    nothing = [math.nan, math.nan]
    intervals = {
        name: interval(draws[name]) if samples else nothing for name in found
    }
    return Result(
        {"task": task, **values, **found, "intervals": intervals}, outcomes
    )


def plain(value: Any) -> Any:
    """Convert a value for JSON: lists for arrays, `None` for NaN."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
