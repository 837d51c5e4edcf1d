"""Fine-tune on VTAB-1k, with a sweep of settings for each of its 19 tasks."""

import dataclasses
import logging
import math
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np

from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import resample
from align_keras.evaluation.finetune import encoder_fingerprint
from align_keras.evaluation.finetune import measure_finetune
from align_keras.evaluation.finetune_recipes import FinetuneRecipe
from align_keras.evaluation.finetune_recipes import Stage
from align_keras.evaluation.results import Result
from align_keras.evaluation.vtab_tasks import TASKS
from align_keras.evaluation.vtab_tasks import TRAIN
from align_keras.evaluation.vtab_tasks import VALIDATION
from align_keras.evaluation.vtab_tasks import load_task
from align_keras.io.claims import claim
from align_keras.io.json_files import is_number
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.io.lists import check_list
from align_keras.io.mirrors import locked

logger = logging.getLogger("align_keras")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings that trials draw from.

    The paper draws 50 trials per task from the space in appendix I of the VTAB
    paper. This space is a different one, chosen for this library.

    Attributes:
        trials: int. Number of draws. Defaults to `50`.
        learning_rate: pair of floats. Bounds of a log-uniform distribution.
        weight_decay: tuple of floats. Values to choose from.
        steps: tuple of ints. Values to choose from.
        batch_size: tuple of ints. Values to choose from.
        image_size: tuple of ints. Values to choose from.
        augmentation: tuple of strings. Values to choose from, see `Stage`.
    """

    trials: int = 50
    learning_rate: tuple[float, float] = (1e-4, 1e-1)
    weight_decay: tuple[float, ...] = (0.0, 1e-5, 1e-4)
    steps: tuple[int, ...] = (500, 1000, 2500)
    batch_size: tuple[int, ...] = (64, 256)
    image_size: tuple[int, ...] = (224, 289)
    augmentation: tuple[str, ...] = ("inception", "none")

    def draw(self, seed: int, trial: int) -> FinetuneRecipe:
        """Return the `FinetuneRecipe` of a trial."""
        rng = np.random.default_rng([seed, trial])
        low, high = np.log(self.learning_rate)
        rate = float(np.exp(rng.uniform(low, high)))
        chosen = {
            name: getattr(self, name)[rng.integers(len(getattr(self, name)))]
            for name in ("steps", "batch_size", "image_size", "augmentation")
        }
        decay = self.weight_decay[rng.integers(len(self.weight_decay))]
        stage = Stage(
            "all",
            rate,
            eval_size=chosen["image_size"],
            **chosen,
        )
        return FinetuneRecipe((stage,), weight_decay=decay)


@locked("workdir")
def measure_vtab(
    make_model: Callable[[], keras.Model],
    workdir: str | Path,
    tasks: Sequence[str] | None = None,
    sweep: Sweep | None = None,
    runs: int = 3,
    seed: int = 0,
    data_dir: str | None = None,
    limits: tuple[int, int] = (TRAIN, VALIDATION),
    samples: int = SAMPLES,
    progress: bool = True,
    identity: str | None = None,
) -> Result:
    """Fine-tune on tasks of VTAB-1k, and average their accuracies.

    For each task, every trial trains on 800 images and is measured on 200. The
    best settings are then trained on all 1,000 images, with `runs` seeds, and
    measured on the test images. Finished trials and runs are not repeated.

    Args:
        make_model: callable. Returns a new, pretrained
            `align_keras.AlignDualEncoder`.
        workdir: string or `pathlib.Path`. The directory for checkpoints and
            results.
        tasks: list of strings. Keys of `TASKS`. Defaults to `None`, all.
        sweep: `Sweep`. Defaults to `None`, 50 trials of the default space.
        runs: integer. Runs with the best settings. Defaults to `3`.
        seed: integer. Determines the trials, and the seeds of the runs.
            Defaults to `0`.
        data_dir: string. Where TFDS keeps its data. Defaults to the default
            directory of TFDS.
        limits: pair of integers. See `load_task`.
        samples: integer. Resamples for the intervals. Defaults to `1000`.
        progress: bool. Whether to show Keras' progress. Defaults to `True`.
        identity: string. See `measure_finetune`.

    Returns:
        A `Result`: `"all"`, the mean top-1 accuracy of the tasks; the mean
        of each group; and the accuracy of each task, as in `"task_dtd"`.

    Raises:
        FileNotFoundError: the data set of a task has not been prepared.
        ValueError: there is no such task, `runs` or the number of trials is
            not positive, or `workdir` holds trials of another model or with
            other settings.
    """
    sweep, workdir = sweep or Sweep(), Path(workdir)
    for option, value in (("runs", runs), ("trials", sweep.trials)):
        if value < 1:
            raise ValueError(
                f"`{option}` must be positive. Received: {option}={value}"
            )
    check_list(tasks, "tasks")
    identity = identity or encoder_fingerprint(make_model())
    asked = {
        "model": identity,
        "sweep": dataclasses.asdict(sweep),
        "limits": limits,
        "seed": seed,
    }
    # Report missing data before the first day of training.
    loaded = {n: load_task(n, data_dir, limits) for n in tasks or TASKS}
    results = {}
    for name, data in loaded.items():
        claim(workdir / name / "sweep.json", asked, "a sweep")
        best, score = _best_trial(
            make_model, data, sweep, workdir / name, seed, progress, identity
        )
        logger.info(
            "%s: best of %d trials: %.1f%%", name, sweep.trials, 100 * score
        )
        results[name] = measure_finetune(
            make_model,
            data["train+validation"],
            data["test"],
            best,
            workdir / name / "final",
            runs,
            seed,
            samples,
            progress,
            identity,
        )
        logger.info("%s: %.1f%%", name, 100 * results[name]["top1"])
    return _summary(results, runs, samples)


def _best_trial(make_model, data, sweep, folder, seed, progress, identity):
    scores = []
    for trial in range(sweep.trials):
        recipe = sweep.draw(seed, trial)
        path = folder / f"trial-{trial}.json"
        if not path.is_file():
            result = measure_finetune(
                make_model,
                data["train"],
                data["validation"],
                recipe,
                folder / f"trial-{trial}",
                seed=seed,
                samples=0,
                progress=progress,
                identity=identity,
            )
            write_json(path, {"top1": result["top1"]})
        trial = read_object(
            path,
            {"top1": is_number},
            "trial of a sweep",
            "Remove it, and the trial is run again.",
        )
        scores.append(trial["top1"])
    best = int(np.argmax(scores))
    return sweep.draw(seed, best), scores[best]


def _summary(results, runs, samples):
    """Average the tasks; the intervals draw the images of each separately."""
    outcomes = {}
    for name, result in results.items():
        right = result.outcomes["rank"] == 0
        outcomes[f"{name}_label"] = result.outcomes["label"]
        outcomes[f"{name}_accuracy"] = np.mean(right, axis=0)
    metrics = _with_groups(
        {n: float(np.mean(outcomes[f"{n}_accuracy"])) for n in results}
    )
    draws = vtab_draws(outcomes, samples)
    return Result(
        {
            "task": "vtab",
            "dataset": "vtab",
            "model": next(iter(results.values()))["model"],
            "tasks": list(results),
            "runs": runs,
            **metrics,
            "intervals": {
                name: interval(draws[name]) if samples else [math.nan] * 2
                for name in metrics
            },
        },
        outcomes,
    )


def vtab_draws(
    outcomes: dict[str, np.ndarray], samples: int
) -> dict[str, np.ndarray]:
    """Resample the accuracies of the tasks and of their groups.

    Args:
        outcomes: dictionary of arrays `"TASK_accuracy"`. The share of runs
            that were right on each image.
        samples: integer. Number of resamples.

    Returns:
        A dictionary from each metric of `measure_vtab` to a float64 array
        `(samples,)`. The images of each task are drawn separately.
    """
    names = [
        n.removesuffix("_accuracy") for n in outcomes if n.endswith("_accuracy")
    ]
    draws = {}
    for name in names:
        found = resample(
            partial(_mean, outcomes[f"{name}_accuracy"]),
            len(outcomes[f"{name}_accuracy"]),
            samples,
            list(TASKS).index(name),
        )
        draws[name] = found.get("mean", np.zeros(0))
    return _with_groups(draws)


def _mean(right, weights):
    return {"mean": weights @ right / len(right)}


def _with_groups(tasks):
    """Return the means over all tasks and over groups, and each task."""
    groups = {"all": list(tasks)}
    for name in tasks:
        groups.setdefault(TASKS[name].group, []).append(name)
    means = {
        group: sum(tasks[name] for name in names) / len(names)
        for group, names in groups.items()
    }
    return {**means, **{f"task_{name}": tasks[name] for name in tasks}}
