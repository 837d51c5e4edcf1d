"""Measure the tasks of DataComp's zero-shot evaluation."""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.similarity import exact_scores
from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import resample
from align_keras.evaluation.datacomp_tasks import GROUPS
from align_keras.evaluation.datacomp_tasks import TASKS
from align_keras.evaluation.datacomp_tasks import Source
from align_keras.evaluation.datacomp_tasks import list_sources
from align_keras.evaluation.results import Result
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.evaluation.retrieval import retrieval_recalls
from align_keras.evaluation.winogavil import associate
from align_keras.evaluation.winogavil import jaccard_chance
from align_keras.evaluation.zero_shot import classification_outcomes
from align_keras.evaluation.zero_shot import embed_named
from align_keras.io.fingerprints import fingerprint
from align_keras.io.mirrors import reads

logger = logging.getLogger("align_keras")

# Images that are scored against the classes at once.
_ROWS = 4096


# === Metrics ===


def _accuracy(outcomes, weights):
    return float(weights @ (outcomes["rank"] == 0) / weights.sum())


def _mean_per_class(outcomes, weights):
    return classification_accuracies(outcomes, weights, (1,))["mean_per_class"]


def _worst_group(outcomes, weights, k=1):
    """Return the smallest accuracy of a group, among those with images."""
    counts = np.bincount(outcomes["group"], weights)
    hits = np.bincount(outcomes["group"], weights * (outcomes["rank"] < k))
    present = counts > 0
    return float(np.min(hits[present] / counts[present]))


def _macro_f1(outcomes, weights):
    """Return the mean F1 score of the classes that have images."""
    label, predicted = outcomes["label"], outcomes["predicted"]
    size = 1 + max(label.max(), predicted.max())
    images = np.bincount(label, weights, size)
    taken = np.bincount(predicted, weights, size)
    right = np.bincount(label, weights * (label == predicted), size)
    present = images > 0
    return float(np.mean(2 * right[present] / (images + taken)[present]))


def _mean_recall(outcomes, weights):
    return retrieval_recalls(outcomes, weights, ks=(1,))["mean_recall"]


def _jaccard(outcomes, weights):
    return float(weights @ outcomes["score"] / weights.sum())


# For each metric: its function, and the outcomes that belong to the data, not
# the model. The first of these has one value for each unit that is drawn.
METRICS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "accuracy": (_accuracy, ("label",)),
    "mean_per_class": (_mean_per_class, ("label",)),
    "worst_group": (_worst_group, ("label", "group")),
    "worst_group_top5": (partial(_worst_group, k=5), ("label", "group")),
    "macro_f1": (_macro_f1, ("label",)),
    "mean_recall": (_mean_recall, ("fold", "text_image")),
    "jaccard": (_jaccard, ("candidates", "associations")),
}


def task_metric(
    metric: str,
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
) -> float:
    """Compute the metric of a task.

    Args:
        metric: string. A key of `METRICS`.
        outcomes: dictionary of arrays. `"label"`, `"rank"` (from 0), `"group"`
            and `"predicted"`, each `(num_images,)`, if the metric needs them;
            those of `retrieval_outcomes`; or `"candidates"` and `"score"`
            `(count,)`.
        weights: integer array. How often each image or example counts.
            Defaults to `None`, once each.

    Returns:
        A float. `"accuracy"`; `"mean_per_class"`, its mean over classes;
        `"worst_group"`, its minimum over groups; `"worst_group_top5"`, the
        same for top-5 accuracy; `"macro_f1"`; `"mean_recall"`, the mean of
        recall@1 in both directions; `"jaccard"`. Classes and groups without
        images do not count.
    """
    function, (unit, *_) = METRICS[metric]
    if weights is None:
        weights = np.ones(len(outcomes[unit]), "int64")
    return function(outcomes, weights)


def _chance(metric, outcomes, classes):
    """Return the expected metric of uniform guesses, the same per group."""
    if metric == "jaccard":
        pairs = zip(
            outcomes["candidates"], outcomes["associations"], strict=True
        )
        return float(
            np.mean([jaccard_chance(int(c), int(a)) for c, a in pairs])
        )
    if metric == "macro_f1":
        counts = np.bincount(outcomes["label"])
        counts = counts[counts > 0]
        shares = counts / counts.sum()
        # A class is guessed for 1 / classes of its own and of all images.
        return float(np.mean(2 * shares / (classes * shares + 1)))
    return min(1.0, (5 if metric == "worst_group_top5" else 1) / classes)


def _with_means(tasks):
    """Return the means over all tasks and complete groups, and each task."""
    every = "average" if tasks.keys() >= TASKS.keys() else "mean_of_measured"
    groups = {every: tuple(tasks)}
    for group, names in GROUPS.items():
        if tasks.keys() >= set(names):
            groups[group] = names
    means = {
        group: sum(tasks[name] for name in names) / len(names)
        for group, names in groups.items()
    }
    return {**means, **{f"task_{name}": value for name, value in tasks.items()}}


def datacomp_draws(
    outcomes: dict[str, np.ndarray], samples: int
) -> dict[str, np.ndarray]:
    """Resample the tasks and their means.

    Args:
        outcomes: dictionary of arrays `"TASK.NAME"`. See `task_metric`.
        samples: integer.

    Returns:
        A dictionary from each metric of `measure_datacomp` to a float64 array
        `(samples,)`. The images of each task are drawn separately.
    """
    draws = {}
    for number, (name, task) in enumerate(TASKS.items()):
        own = _of_task(outcomes, name)
        if not own:
            continue
        function, (unit, *_) = METRICS[task.metric]
        found = resample(
            partial(_valued, function, own), len(own[unit]), samples, number
        )
        draws[name] = found.get("value", np.zeros(0))
    return _with_means(draws)


def _valued(function, outcomes, weights):
    return {"value": function(outcomes, weights)}


def given_outcomes(tasks: list[str]) -> list[str]:
    """Return the names of the outcomes that belong to the data."""
    return [
        f"{name}.{given}"
        for name in tasks
        for given in METRICS[TASKS[name].metric][1]
    ]


def _of_task(outcomes, name):
    return {
        key.removeprefix(f"{name}."): values
        for key, values in outcomes.items()
        if key.startswith(f"{name}.")
    }


# === Data ===


def find_sources(
    root: str | Path, allow_outside: bool = False
) -> tuple[dict[str, Source], dict[str, str]]:
    """Find the tasks whose data are in a directory.

    Args:
        root: string or `pathlib.Path`. See `measure_datacomp`.
        allow_outside: bool. See `list_sources`.

    Returns:
        A pair of dictionaries: from the name of each task that has data to
        its `Source`, and from the names of the others to the reason.
    """
    found, missing = {}, {}
    for name in TASKS:
        sources = list_sources(root, name, allow_outside)
        there = [s for s in sources if all(map(Path.exists, s.needs))]
        if there:
            found[name] = there[0]
        else:
            needs = [
                " and ".join(str(path) for path in s.needs) for s in sources
            ]
            missing[name] = f"there is no {', nor '.join(needs)}"
    return found, missing


@reads("root")
def measure_datacomp(
    model: Embedder | keras.Model,
    root: str | Path,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
    allow_outside: bool = False,
) -> Result:
    """Measure the tasks of DataComp's evaluation that have data on disk.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        root: string or `pathlib.Path`. A directory in the layout of
            docs/evaluation.md.
        batch_size, progress, cache, samples: See `measure_retrieval`. The
            intervals resample the images of each task separately.
        allow_outside: bool. Whether links may lead out of a data set.
            Defaults to `False`.

    Returns:
        A `Result`: under `"task_…"` the metric of each task; their mean,
        called `"average"` if all 38 tasks were measured and
        `"mean_of_measured"` otherwise; and the means of complete groups.
        `"tasks_missing"` and `"tasks_failed"` tell why the other tasks were
        not measured.

    Raises:
        ValueError: No task could be measured.

    Example:

    ```python
    measure_datacomp(model, "data")["task_cifar10"]
    ```

    Reference:
        - [Gadre et al., 2023](https://arxiv.org/abs/2304.14108)
    """
    embedder = as_embedder(model)
    found, missing = find_sources(root, allow_outside)
    failed: dict[str, str] = {}
    outcomes: dict[str, np.ndarray] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, source in found.items():
        options = {
            "batch_size": batch_size,
            "progress": progress,
            "cache": cache,
        }
        try:
            own, values[name] = _measure(
                embedder, name, source, options, allow_outside
            )
        except (ValueError, OSError, ImportError) as error:
            logger.warning("DataComp's task %s: %s", name, error)
            failed[name] = f"{error}"
            continue
        outcomes |= {f"{name}.{key}": array for key, array in own.items()}
    if not values:
        raise ValueError(
            f"No task of DataComp could be measured on `{root}`: see "
            "docs/evaluation.md for the folders that it may hold. The first "
            f"reason: {next(iter({**failed, **missing}.items()))}"
        )
    return _summary(embedder, found, outcomes, values, missing, failed, samples)


def _measure(embedder, name, source, options, allow_outside):
    """Return the outcomes of a task, and the fields of its result."""
    task = TASKS[name]
    data, classes = source.open()
    if task.metric == "jaccard":
        outcomes, values = associate(
            embedder, data, classes, allow_outside=allow_outside, **options
        )
        return outcomes, {**values, "chance": _chance(task.metric, outcomes, 0)}
    if task.metric == "mean_recall":
        result = measure_retrieval(
            embedder, data, ks=(1,), samples=0, **options
        )
        chance = result["chance_mean_recall"]
        return result.outcomes, {**result, "chance": chance}
    names = classes.names if source.kind == "archives" else data.class_names
    if len(names or ()) != task.classes:
        raise ValueError(
            f"`{source.needs[0]}` has {len(names or ())} classes, but the task "
            f"has {task.classes}."
        )
    found = embed_named(
        *(embedder, data, classes, None, "normalized", False),
        **options,
    )
    outcomes = classification_outcomes(
        found.images, found.classes, found.labels, found.answers
    )
    if found.notes.size:
        # Renumber the groups from 0.
        _, group = np.unique(found.notes[:, 0], return_inverse=True)
        outcomes["group"] = group
    if task.metric == "macro_f1":
        outcomes["predicted"] = _predicted(found.images, found.classes)
    chance = _chance(task.metric, outcomes, task.classes)
    return outcomes, {**found.values, "chance": chance}


def _predicted(images, classes):
    """Return the best class of each image; the first among equal scores."""
    parts = [
        exact_scores(images[start : start + _ROWS], classes).argmax(axis=1)
        for start in range(0, len(images), _ROWS)
    ]
    return np.concatenate(parts)


def _summary(embedder, found, outcomes, values, missing, failed, samples):
    tasks = list(values)
    metrics = _with_means(
        {
            name: task_metric(TASKS[name].metric, _of_task(outcomes, name))
            for name in tasks
        }
    )
    chances = _with_means({name: values[name]["chance"] for name in tasks})
    draws = datacomp_draws(outcomes, samples)
    nothing = [math.nan, math.nan]
    return Result(
        {
            "task": "datacomp",
            "dataset": "datacomp",
            "model": embedder.name,
            "tasks": tasks,
            "metric_of_task": {name: TASKS[name].metric for name in tasks},
            "sources": {name: found[name].kind for name in tasks},
            "images_of_task": {name: values[name]["images"] for name in tasks},
            "images": sum(values[name]["images"] for name in tasks),
            "images_skipped": sum(values[n]["images_skipped"] for n in tasks),
            "examples_skipped": sum(
                values[name].get("examples_skipped", 0) for name in tasks
            ),
            "image_digest": fingerprint(
                [values[name]["image_digest"] for name in tasks]
            ),
            "prompts": fingerprint(
                [values[name].get("prompts") for name in tasks]
            ),
            "tasks_missing": missing,
            "tasks_failed": failed,
            **metrics,
            **{f"chance_{name}": value for name, value in chances.items()},
            "intervals": {
                name: interval(draws[name]) if samples else nothing
                for name in metrics
            },
        },
        outcomes,
    )
