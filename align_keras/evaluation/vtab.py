"""The 19 tasks of VTAB-1k, by their TFDS names.

1,000 training pictures a task: 800 to train on, 200 to choose among settings,
then all of them for the settings that were best (Zhai et al., 2019,
https://arxiv.org/abs/1910.04867).
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import resample
from align_keras.evaluation.finetune import finetune_classifier
from align_keras.evaluation.finetune import weights_digest
from align_keras.evaluation.finetune_recipes import FinetuneRecipe
from align_keras.evaluation.finetune_recipes import Stage
from align_keras.evaluation.results import Result
from align_keras.io.atomic import atomic_file
from align_keras.io.claims import claim

TRAIN, VALIDATION = 800, 200


class Task(NamedTuple):
    """One task.

    Attributes:
        group: string, `"natural"`, `"specialized"` or `"structured"`.
        tfds: string. Name of the data set.
        train, validation, test: strings. Its splits; the first 800 and 200 of
            the first two are taken.
        label: string, a feature, or a callable of an example.
        classes: integer, where the label is a callable.
        picture: callable of the bytes of a picture, or `None`.
    """

    group: str
    tfds: str
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    label: object = "label"
    classes: int | None = None
    picture: object = None


def _bins(edges):
    """Number of the last edge below a value."""
    return lambda value: int(np.searchsorted(edges, value, side="left")) - 1


def _clevr_distance(example):
    nearest = np.min(example["objects"]["pixel_coords"][:, 2])
    return _bins([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])(nearest)


def _clevr_count(example):
    return len(example["objects"]["size"]) - 3


def _kitti_distance(example):
    # Car, van, truck; none at all is the last class.
    vehicles = example["objects"]["type"] < 3
    depths = example["objects"]["location"][vehicles, 2]
    return _bins([-100.0, 8.0, 20.0, 999.0])(min([1000.0, *depths]))


def _grouped(name, original, groups):
    return lambda example: int(example[name] // (original / groups))


def _silhouette(contents):
    """A picture of zeros and ones, in three channels of 0 and 255."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(contents)).convert("L"))
    return np.repeat(255 * (pixels > 0).astype("uint8")[..., None], 3, axis=2)


_90 = ("train[:90%]", "train[90%:]")
_60 = ("train[:60%]", "train[60%:80%]", "train[80%:]")
_DSPRITES = ("train[:80%]", "train[80%:90%]", "train[90%:]")
_NORB = ("train", "test[:50%]", "test[50%:]")
TASKS = {
    "caltech101": Task("natural", "caltech101", *_90),
    "cifar100": Task("natural", "cifar100", *_90),
    "dtd": Task("natural", "dtd"),
    "flowers102": Task("natural", "oxford_flowers102"),
    "pets": Task("natural", "oxford_iiit_pet", "train[:80%]", "train[80%:]"),
    "svhn": Task("natural", "svhn_cropped", *_90),
    "sun397": Task("natural", "sun397"),
    "patch_camelyon": Task("specialized", "patch_camelyon"),
    "eurosat": Task("specialized", "eurosat/rgb", *_60),
    "resisc45": Task("specialized", "resisc45", *_60),
    "retinopathy": Task(
        "specialized", "diabetic_retinopathy_detection/btgraham-300"
    ),
    "clevr_count": Task(
        "structured", "clevr", *_90, "validation", _clevr_count, 8
    ),
    "clevr_distance": Task(
        "structured", "clevr", *_90, "validation", _clevr_distance, 6
    ),
    "dmlab": Task("structured", "dmlab"),
    "kitti_distance": Task(
        "structured", "kitti", label=_kitti_distance, classes=4
    ),
    "dsprites_location": Task(
        "structured",
        "dsprites",
        *_DSPRITES,
        _grouped("label_x_position", 32, 16),
        16,
        _silhouette,
    ),
    "dsprites_orientation": Task(
        "structured",
        "dsprites",
        *_DSPRITES,
        _grouped("label_orientation", 40, 16),
        16,
        _silhouette,
    ),
    "smallnorb_azimuth": Task(
        "structured", "smallnorb", *_NORB, "label_azimuth"
    ),
    "smallnorb_elevation": Task(
        "structured", "smallnorb", *_NORB, "label_elevation"
    ),
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings that trials draw from.

    The paper draws 50 trials a task from the space in the VTAB paper's
    appendix I, which is not reproduced here; this one is our own.

    Attributes:
        trials: int. Number of draws. Defaults to `50`.
        learning_rate: pair of floats. Drawn evenly in the logarithm.
        weight_decay: tuple of floats.
        steps: tuple of ints.
        batch_size: tuple of ints.
        image_size: tuple of ints.
        augmentation: tuple of strings, see `Stage`.
    """

    trials: int = 50
    learning_rate: tuple = (1e-4, 1e-1)
    weight_decay: tuple = (0.0, 1e-5, 1e-4)
    steps: tuple = (500, 1000, 2500)
    batch_size: tuple = (64, 256)
    image_size: tuple = (224, 289)
    augmentation: tuple = ("inception", "none")

    def draw(self, seed, trial):
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


def load_task(name, data_dir=None, limits=(TRAIN, VALIDATION)):
    """Make the data sets of a task.

    Args:
        name: string, a key of `TASKS`.
        data_dir: string. Where TFDS keeps its data.
        limits: pair of integers. Numbers of training and validation pictures.

    Returns:
        A dictionary of `DataSet`: `"train"`, `"validation"`, both as
        `"train+validation"`, and `"test"`.

    Raises:
        FileNotFoundError: TFDS does not have the data yet.
        ImportError: tensorflow-datasets is not installed.
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(
            f"There is no VTAB task {name!r}. Tasks: {', '.join(TASKS)}."
        )
    task = TASKS[name]

    def load(split, limit, part):
        data = datasets.tfds_labels(
            task.tfds, split, data_dir, task.label, task.picture, limit
        )
        classes = data.class_names
        if task.classes:
            classes = [str(number) for number in range(task.classes)]
        return dataclasses.replace(
            data, name=f"vtab_{name}_{part}", class_names=classes
        )

    train = load(task.train, limits[0], "train")
    validation = load(task.validation, limits[1], "validation")

    def both():
        yield from train.examples()
        yield from validation.examples()

    return {
        "train": train,
        "validation": validation,
        "train+validation": dataclasses.replace(
            train,
            name=f"vtab_{name}_train+validation",
            examples=both,
            total=None,
        ),
        "test": load(task.test, None, "test"),
    }


def evaluate_vtab(
    make_model,
    workdir,
    tasks=None,
    sweep=None,
    runs=3,
    seed=0,
    data_dir=None,
    limits=(TRAIN, VALIDATION),
    samples=SAMPLES,
    progress=True,
    say=print,
    identity=None,
):
    """Fine-tune on tasks of VTAB-1k, and take the mean.

    For each task the settings of every trial are trained on 800 pictures and
    judged on 200; those that are best are trained again on all 1,000, with
    `runs` seeds, and measured on the test pictures. Whatever is finished is
    not repeated.

    Args:
        make_model: callable that returns a fresh, pre-trained
            `align_keras.AlignDualEncoder`.
        workdir: string or `pathlib.Path`.
        tasks: list of keys of `TASKS`. Defaults to `None`, all.
        sweep: `Sweep`. Defaults to `None`, 50 trials of our own space.
        runs: integer. Runs of the best settings. Defaults to `3`.
        seed: integer. Defaults to `0`.
        data_dir: string. Where TFDS keeps its data.
        limits: pair of integers. See `load_task`.
        samples: integer. Resamples of the intervals. Defaults to `1000`.
        progress: bool. Whether to show Keras' progress. Defaults to `True`.
        say: callable that is told in words what happens.
        identity: string. See `finetune_classifier`.

    Returns:
        A `Result`: `"all"`, the mean top-1 accuracy of the tasks, that of
        each group, and that of each task.

    Raises:
        FileNotFoundError: TFDS does not have the data of a task yet.
        ValueError: there is no such task, `runs` or the number of trials is
            not positive, or `workdir` holds trials of another model or other
            settings.
    """
    sweep, workdir = sweep or Sweep(), Path(workdir)
    for option, value in (("runs", runs), ("trials", sweep.trials)):
        if value < 1:
            raise ValueError(
                f"`{option}` must be positive. Received: {option}={value}"
            )
    identity = identity or weights_digest(make_model())
    asked = {
        "model": identity,
        "sweep": dataclasses.asdict(sweep),
        "limits": limits,
        "seed": seed,
    }
    # What is missing is said before the first day of training.
    loaded = {n: load_task(n, data_dir, limits) for n in tasks or TASKS}
    results = {}
    for name, data in loaded.items():
        claim(workdir / name / "sweep.json", asked)
        best, score = _best_trial(
            make_model, data, sweep, workdir / name, seed, progress, identity
        )
        say(f"{name}: best of {sweep.trials} trials: {score:.1%}")
        results[name] = finetune_classifier(
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
        say(f"{name}: {results[name]['top1']:.1%}")
    return _summary(results, runs, samples)


def _best_trial(make_model, data, sweep, folder, seed, progress, identity):
    scores = []
    for trial in range(sweep.trials):
        recipe = sweep.draw(seed, trial)
        path = folder / f"trial-{trial}.json"
        if not path.is_file():
            result = finetune_classifier(
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
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps({"top1": result["top1"]}))
        scores.append(json.loads(path.read_text())["top1"])
    best = int(np.argmax(scores))
    return sweep.draw(seed, best), scores[best]


def _summary(results, runs, samples):
    """The mean of the tasks, whose pictures are drawn task by task."""
    outcomes = {}
    for name, result in results.items():
        right = result.outcomes["rank"] == 0
        outcomes[f"{name}_label"] = result.outcomes["label"]
        outcomes[f"{name}_accuracy"] = np.mean(right, axis=0)
    figures = _with_groups(
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
            **figures,
            "intervals": {
                name: interval(draws[name]) if samples else [math.nan] * 2
                for name in figures
            },
        },
        outcomes,
    )


def vtab_draws(outcomes, samples):
    """Resample the accuracies of the tasks and of their groups.

    Args:
        outcomes: dictionary of arrays `"TASK_accuracy"`, the share of the
            runs that were right on each picture.
        samples: integer.

    Returns:
        A dictionary from each figure of `evaluate_vtab` to a float64 array
        `(samples,)`. Each task draws among its own pictures.
    """
    names = [
        n.removesuffix("_accuracy") for n in outcomes if n.endswith("_accuracy")
    ]
    draws = {}
    for name in names:
        right = outcomes[f"{name}_accuracy"]
        found = resample(
            lambda weights, right=right: {"mean": weights @ right / len(right)},
            len(right),
            samples,
            list(TASKS).index(name),
        )
        draws[name] = found.get("mean", np.zeros(0))
    return _with_groups(draws)


def _with_groups(tasks):
    """Means of all tasks and of each group, and the tasks themselves."""
    groups = {"all": list(tasks)}
    for name in tasks:
        groups.setdefault(TASKS[name].group, []).append(name)
    means = {
        group: sum(tasks[name] for name in names) / len(names)
        for group, names in groups.items()
    }
    return {**means, **{f"task_{name}": tasks[name] for name in tasks}}
