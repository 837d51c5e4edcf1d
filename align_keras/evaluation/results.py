"""What an evaluation gives: metrics as JSON, outcomes beside them."""

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

# What the JSON file says of the outcomes.
_DIGEST = "outcomes_sha256"


# What error messages say of a result.
_ABOUT = "result of `align-keras evaluate`", "Evaluate again."


def _is_metric(value):
    # What has no value is `null`.
    return value is None or is_number(value)


# Of the fields that are used of a result.
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
    """The metrics of one evaluation, and what each query contributed.

    A dictionary that JSON can hold. `"task"`, `"dataset"` and `"model"` say
    what was measured; the metrics stand under their names; `"intervals"` maps
    each of them to the ends of its 95% interval; the rest are counts and
    options.

    Args:
        values: dictionary of what JSON can hold.
        outcomes: dictionary of arrays, one value for each query, from which
            the metrics and their resamples follow. Saved beside the JSON file
            as `.npz`, for `compare_results`.
    """

    def __init__(
        self, values: dict, outcomes: dict[str, np.ndarray] | None = None
    ):
        super().__init__(values)
        self.outcomes = outcomes or {}

    def save(self, path: str | Path) -> None:
        """Write `path`, and the outcomes, if any, beside it.

        Raises:
            ValueError: the name does not end in `.json`.
        """
        path = check_name(path)
        # The JSON file comes last, and names the contents of the other: where
        # it is, all is, whoever else wrote to that place.
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
        """Return the metrics as text; what has no value is `null`."""
        return json.dumps(plain(self), indent=2, allow_nan=False)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not the result of an evaluation, or the
                outcomes beside it are those of another.
        """
        path = check_name(path)
        values = read_object(path, _FORM, *_ABOUT)
        measured = dict.fromkeys(values.get("intervals", ()), _is_metric)
        check_form(values, measured, path, *_ABOUT)
        outcomes = path.with_suffix(".npz")
        # Before there were digests, any file of that name was taken.
        digest = values.pop(_DIGEST, "")
        if digest is None or not outcomes.is_file():
            return cls(values)
        if digest:
            check_digest(outcomes, digest, f"evaluate anew into `{path}`")
        try:
            with np.load(outcomes, allow_pickle=False) as arrays:
                return cls(values, dict(arrays))
        except (EOFError, TypeError, ValueError, BadZipFile):
            raise ValueError(
                f"`{outcomes}` is damaged: evaluate anew into `{path}`."
            ) from None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics alone, without counts and options."""
        return {name: self[name] for name in self.get("intervals", {})}


def check_name(path: str | Path) -> Path:
    """Return a result's path if it ends in `.json`.

    With any other ending, two results could share one `.npz`.
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
        task: string. Which evaluation it is.
        metrics: callable. Takes `outcomes` and weights of the units, or
            `None`, and returns a dictionary of floats.
        outcomes: dictionary of arrays.
        units: integer. Number of units that a bootstrap draws.
        samples: integer. Number of resamples; 0 for no intervals. Defaults to
            `1000`.
        **values: What else belongs in the result.

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
    """Return what JSON can hold: lists for tuples and arrays."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
