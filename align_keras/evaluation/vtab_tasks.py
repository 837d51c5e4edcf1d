"""The 19 tasks of VTAB-1k, by their TFDS names.

Each task has 1,000 training images: 800 to train on and 200 to choose settings
with; then all of them train with the best settings (Zhai et al., 2019,
https://arxiv.org/abs/1910.04867).
"""

import dataclasses
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from align_keras.evaluation import datasets

TRAIN, VALIDATION = 800, 200


class Task(NamedTuple):
    """One task of VTAB.

    Attributes:
        group: string. `"natural"`, `"specialized"` or `"structured"`.
        tfds: string. Name of the data set.
        train, validation, test: strings. Its splits. The first 800 examples
            of `train` and the first 200 of `validation` are used.
        label: string or callable. See `tfds_labels`.
        classes: integer. The number of classes, if `label` is a callable.
        decode: callable or `None`. See `tfds_labels`.
    """

    group: str
    tfds: str
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    label: str | Callable[[dict], int] = "label"
    classes: int | None = None
    decode: Callable[[bytes], np.ndarray] | None = None


def _bins(edges):
    """Return a function that finds the last edge below a value."""
    return lambda value: int(np.searchsorted(edges, value, side="left")) - 1


def _clevr_distance(example):
    nearest = np.min(example["objects"]["pixel_coords"][:, 2])
    return _bins([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])(nearest)


def _clevr_count(example):
    return len(example["objects"]["size"]) - 3


def _kitti_distance(example):
    # Cars, vans and trucks. Images without any are in the last class.
    vehicles = example["objects"]["type"] < 3
    depths = example["objects"]["location"][vehicles, 2]
    return _bins([-100.0, 8.0, 20.0, 999.0])(min([1000.0, *depths]))


def _grouped(name, original, groups):
    return lambda example: int(example[name] // (original / groups))


def _silhouette(contents):
    """Decode an image of zeros and ones to three channels of 0 and 255."""
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


def load_task(
    name: str,
    data_dir: str | None = None,
    limits: tuple[int, int] = (TRAIN, VALIDATION),
) -> dict[str, datasets.DataSet]:
    """Make the data sets of a task.

    Args:
        name: string. A key of `TASKS`.
        data_dir: string. Where TFDS keeps its data. Defaults to the default
            directory of TFDS.
        limits: pair of integers. Numbers of training and validation images.
            Defaults to `(800, 200)`.

    Returns:
        A dictionary of `DataSet`: `"train"`, `"validation"`, both of them as
        `"train+validation"`, and `"test"`.

    Raises:
        FileNotFoundError: the data set has not been prepared.
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
            task.tfds, split, data_dir, task.label, task.decode, limit
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
