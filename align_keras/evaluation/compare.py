"""Test whether two models differ, by a paired bootstrap."""

from functools import partial
from pathlib import Path

import numpy as np

from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import p_value
from align_keras.evaluation.bootstrap import resample
from align_keras.evaluation.composition import composition_scores
from align_keras.evaluation.cxc import cxc_recalls
from align_keras.evaluation.datacomp import datacomp_draws
from align_keras.evaluation.datacomp import given_outcomes
from align_keras.evaluation.finetune import finetune_accuracies
from align_keras.evaluation.knn import knn_accuracies
from align_keras.evaluation.multilingual import multilingual_recalls
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import plain
from align_keras.evaluation.retrieval import retrieval_recalls
from align_keras.evaluation.vtab import vtab_draws
from align_keras.evaluation.words import word_correlations

# For each task: its metrics, the options of the result that they take, and the
# outcomes that belong to the data, not the model. The first of these has one
# value for each unit that the bootstrap draws.
_TASKS = {
    "retrieval": (retrieval_recalls, ("ks",), ("fold", "text_image")),
    "multilingual": (
        multilingual_recalls,
        ("languages", "ks"),
        ("captions", "text_image", "text_language"),
    ),
    "zero-shot": (classification_accuracies, ("ks",), ("label",)),
    "linear-probe": (classification_accuracies, ("ks",), ("label",)),
    "finetune": (finetune_accuracies, ("ks",), ("label",)),
    "finetune-head": (finetune_accuracies, ("ks",), ("label",)),
    "knn": (knn_accuracies, (), ("label",)),
    "cxc": (cxc_recalls, ("ks", "drop_empty"), ("caption_image",)),
    "composition": (composition_scores, ("categories", "each"), ("category",)),
    "words": (word_correlations, (), ("judgement",)),
}
# Evaluations of several tasks: their draws, and the outcomes of the data.
_SEVERAL = {
    "vtab": (vtab_draws, lambda tasks: [f"{name}_label" for name in tasks]),
    "datacomp": (datacomp_draws, given_outcomes),
}
SIGNIFICANCE = 0.05
# Fields of a result that describe the evaluation, not the model. The recipe of
# fine-tuning belongs to the model: VTAB chooses one for each.
DEFINITION = (
    "task",
    "dataset",
    "tasks",
    "split",
    "image_digest",
    "train_image_digest",
    "classes",
    "categories",
    "languages",
    "prompts",
    "ensemble",
    "solver",
    "ks",
    "folds",
    "runs",
    "drop_empty",
    "positives_options",
    "correlation_options",
)


def compare_results(
    first: Result | str | Path,
    second: Result | str | Path,
    samples: int = SAMPLES,
) -> dict:
    """Test for each metric whether two models differ.

    Both models are measured on the same resampled queries, and the
    difference is taken within each resample. The p-values are adjusted for
    the number of metrics by Holm's method.

    Args:
        first: `Result`, or the path of its JSON file.
        second: `Result`, or the path of its JSON file, of the same data set.
        samples: integer. Number of resamples. Defaults to `1000`.

    Returns:
        A dictionary: `"task"`, `"dataset"`, `"first"` and `"second"` (the
        names of the models), and `"metrics"`, a list of dictionaries with
        `"name"`, `"first"`, `"second"`, `"difference"` (second minus first),
        `"low"` and `"high"` (its 95% interval), `"p"` (adjusted) and
        `"differs"`, whether `"p"` is below 0.05; and `"samples_needed"`: with
        fewer resamples, no difference is significant, however large.

    Raises:
        ValueError: the results are from different queries or evaluations,
            their outcomes are missing, or `samples` is not positive.

    Example:

    ```python
    compare_results("small.json", "large.json")["metrics"][0]["differs"]
    ```
    """
    if samples < 1:
        raise ValueError(
            "A comparison needs at least one resample. "
            f"Received: samples={samples}"
        )
    one, other = _loaded(first), _loaded(second)
    _require_same(one, other)
    draws = [_replicates(result, samples) for result in (one, other)]
    rows = []
    for name in one.metrics:
        if name not in other.metrics or name not in draws[0]:
            continue
        if one[name] is None or other[name] is None:
            continue
        differences = draws[1][name] - draws[0][name]
        low, high = interval(differences)
        rows.append(
            {
                "name": name,
                "first": one[name],
                "second": other[name],
                "difference": other[name] - one[name],
                "low": low,
                "high": high,
                "p": p_value(differences),
            }
        )
    _adjust(rows)
    return {
        "task": one["task"],
        "dataset": one["dataset"],
        "first": one["model"],
        "second": other["model"],
        "samples": samples,
        "samples_needed": _samples_needed(len(rows)),
        "metrics": rows,
    }


def _loaded(result: Result | str | Path) -> Result:
    if isinstance(result, Result):
        return result
    loaded = Result.load(result)
    for name in ("dataset", "model"):
        if name not in loaded:
            raise ValueError(
                f"`{result}` does not record its `{name}`, so nothing can be "
                "compared with it: evaluate again."
            )
    return loaded


def _require_same(first, second):
    for name in DEFINITION:
        # Tuples become lists when they are saved and loaded.
        values = [plain(result.get(name)) for result in (first, second)]
        if values[0] != values[1]:
            raise ValueError(
                "Only results of the same evaluation can be compared. Received "
                f"{name}={values[0]!r} and {values[1]!r}."
            )
    if first["task"] not in (*_TASKS, *_SEVERAL):
        raise ValueError(
            f"Results of `{first['task']}` cannot be compared query by query."
        )
    for result in (first, second):
        if not result.outcomes:
            raise ValueError(
                f"The outcomes of {result['model']!r} are missing: the `.npz` "
                "file must be next to the JSON file."
            )
    one, other = _Outcomes(first), _Outcomes(second)
    differ = [n for n in _given(first) if not np.array_equal(one[n], other[n])]
    if first.get("text_digest") != second.get("text_digest"):
        differ.append("text_digest")
    if differ:
        raise ValueError(
            "The two results were not measured on the same queries: they "
            f"differ in `{differ[0]}`. Measure both models on the same files."
        )


class _Outcomes(dict):
    """Arrays by name; a missing one raises an error that names the model."""

    def __init__(self, result):
        super().__init__(result.outcomes)
        self.model = result["model"]

    def __missing__(self, name):
        raise ValueError(
            f"The outcomes of {self.model!r} lack `{name}`: evaluate it again."
        )


def _given(result):
    """Return the names of the outcomes that belong to the data."""
    if result["task"] in _SEVERAL:
        return _SEVERAL[result["task"]][1](result["tasks"])
    return _TASKS[result["task"]][2]


def _replicates(result, samples):
    """Resample each metric, on draws that are the same for all models."""
    outcomes = _Outcomes(result)
    if result["task"] in _SEVERAL:
        return _SEVERAL[result["task"]][0](outcomes, samples)
    metrics, options, (units, *_) = _TASKS[result["task"]]
    options = {name: result[name] for name in options if name in result}
    if result["task"] == "cxc":
        units = "image_to_text_rank"
    found = resample(
        partial(_with_weights, metrics, outcomes, options),
        len(outcomes[units]),
        samples,
    )
    for name, values in outcomes.items():
        # Correlations of Crisscrossed Captions are already resampled.
        if name.startswith("sample_"):
            found[name.removeprefix("sample_")] = values
    return found


def _with_weights(metrics, outcomes, options, weights):
    return metrics(outcomes, weights, **options)


def _samples_needed(metrics):
    """Return the fewest draws whose smallest p-value can be significant."""
    return round(2 * metrics / SIGNIFICANCE)


def _adjust(rows):
    """Adjust the p-values by Holm's method, in place."""
    largest = 0.0
    ordered = sorted(rows, key=lambda row: row["p"])
    for place, row in enumerate(ordered):
        largest = max(largest, min(1.0, row["p"] * (len(rows) - place)))
        row["p"] = largest
        row["differs"] = largest < SIGNIFICANCE
