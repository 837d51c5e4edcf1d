"""The 38 tasks of DataComp's evaluation, and where to look for their data.

The tasks and their metrics follow the list that DataComp publishes (Gadre et
al., 2023, https://arxiv.org/abs/2304.14108). It has two more tasks, on faces,
which do not count in its average and are left out here.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

from align_keras.evaluation import datasets
from align_keras.evaluation.class_archives import class_archives
from align_keras.evaluation.objectnet_data import objectnet
from align_keras.evaluation.winogavil import TABLE
from align_keras.evaluation.winogavil import winogavil


class Task(NamedTuple):
    """One task of DataComp.

    Attributes:
        archives: string. The task's folder among DataComp's evaluation sets,
            without `wds_` and `_test`; `None` if it is not among them.
        classes: integer. The number of classes; `None` if the task is not a
            classification.
        metric: string. A key of `align_keras.evaluation.datacomp.METRICS`.
        tfds: pair of strings. A TFDS data set and its split with the same
            test images and with names of the classes; or `None`.
    """

    archives: str | None
    classes: int | None = None
    metric: str = "accuracy"
    tfds: tuple[str, str] | None = None


_MEAN = "mean_per_class"
TASKS = {
    "imagenet": Task("imagenet1k", 1000),
    "imagenet_sketch": Task("imagenet_sketch", 1000),
    "imagenet_v2": Task("imagenetv2", 1000),
    "imagenet_a": Task("imagenet-a", 200),
    "imagenet_o": Task("imagenet-o", 200),
    "imagenet_r": Task("imagenet-r", 200),
    "objectnet": Task("objectnet", 113),
    "caltech101": Task("vtab-caltech101", 102, _MEAN, ("caltech101", "test")),
    "cifar10": Task("cifar10", 10, tfds=("cifar10", "test")),
    "cifar100": Task("vtab-cifar100", 100, tfds=("cifar100", "test")),
    "clevr_count": Task("vtab-clevr_count_all", 8),
    "clevr_distance": Task("vtab-clevr_closest_object_distance", 6),
    "country211": Task("country211", 211),
    "dtd": Task("vtab-dtd", 47, tfds=("dtd", "test")),
    "eurosat": Task("vtab-eurosat", 10, tfds=("eurosat/rgb", "train[80%:]")),
    "fgvc_aircraft": Task("fgvc_aircraft", 100, _MEAN),
    "food101": Task("food101", 101, tfds=("food101", "validation")),
    "gtsrb": Task("gtsrb", 43),
    "kitti_distance": Task("vtab-kitti_closest_vehicle_distance", 4),
    "mnist": Task("mnist", 10, tfds=("mnist", "test")),
    "flowers102": Task(
        "vtab-flowers", 102, _MEAN, ("oxford_flowers102", "test")
    ),
    "pets": Task("vtab-pets", 37, _MEAN, ("oxford_iiit_pet", "test")),
    "voc2007": Task("voc2007", 20),
    "patch_camelyon": Task("vtab-pcam", 2),
    "rendered_sst2": Task("renderedsst2", 2),
    "resisc45": Task("vtab-resisc45", 45, tfds=("resisc45", "train[80%:]")),
    "cars": Task("cars", 196, tfds=("cars196", "test")),
    "stl10": Task("stl10", 10, tfds=("stl10", "test")),
    "sun397": Task("sun397", 397),
    "svhn": Task("vtab-svhn", 10, tfds=("svhn_cropped", "test")),
    "flickr30k": Task(None, metric="mean_recall"),
    "mscoco": Task(None, metric="mean_recall"),
    "winogavil": Task(None, metric="jaccard"),
    "iwildcam": Task("wilds-iwildcam", 182, "macro_f1"),
    "camelyon17": Task("wilds-camelyon17", 2),
    "fmow": Task("wilds-fmow", 62, "worst_group"),
    "dollar_street": Task("dollar_street", 58, "worst_group_top5"),
    "geode": Task("geode", 40, "worst_group"),
}
# Groups of tasks whose means DataComp also reports.
GROUPS = {
    "imagenet_shifts": (
        *("imagenet_sketch", "imagenet_v2", "imagenet_a", "imagenet_o"),
        *("imagenet_r", "objectnet"),
    ),
    "vtab": (
        *("caltech101", "cifar100", "clevr_count", "clevr_distance", "dtd"),
        *("eurosat", "kitti_distance", "flowers102", "pets", "patch_camelyon"),
        *("resisc45", "svhn", "sun397"),
    ),
    "retrieval": ("flickr30k", "mscoco", "winogavil"),
}


class Source(NamedTuple):
    """A place where the data of a task may lie.

    Attributes:
        kind: string. `"archives"` of DataComp, `"folder"` or `"tfds"`.
        needs: tuple of `pathlib.Path`. The files and folders it consists of.
        open: callable without arguments. Returns a `DataSet` with its
            `Classes`, the path of a file of classes, or `None`; for WinoGAViL
            the examples and the folder of images.
    """

    kind: str
    needs: tuple[Path, ...]
    open: Callable[[], tuple[Any, Any]]


def list_sources(
    root: str | Path, name: str, allow_outside: bool = False
) -> list[Source]:
    """List the places where the data of a task may lie, best first.

    Args:
        root: string or `pathlib.Path`. A directory in the layout of
            docs/evaluation.md.
        name: string. A key of `TASKS`.
        allow_outside: bool. Whether links may lead out of a data set.
            Defaults to `False`.

    Returns:
        A list of `Source`, whether or not the data exist.
    """
    root, task, found = Path(root), TASKS[name], []
    links = {"allow_outside": allow_outside}
    if task.archives:
        folder = root / "datacomp" / f"wds_{task.archives}_test"
        read = functools.partial(
            class_archives,
            folder,
            f"datacomp_{name}",
            task.metric.startswith("worst_group"),
            **links,
        )
        found.append(Source("archives", (folder,), read))
    found += _folders(root, name, links)
    if task.tfds:
        data, split = task.tfds
        directory = str(root / "tfds")
        found.append(
            Source(
                "tfds",
                (root / "tfds" / data.partition("/")[0],),
                lambda: (datasets.tfds_labels(data, split, directory), None),
            )
        )
    return found


def _folders(root, name, links):
    """Yield the places where `evaluate all` also looks for these data."""
    images = root / ("mscoco" if name == "mscoco" else "flickr30k") / "images"
    if name in ("flickr30k", "mscoco"):
        file = images.parent / f"dataset_{name.removeprefix('ms')}.json"
        yield Source(
            "folder",
            (file, images),
            lambda: (datasets.karpathy(file, images, name=name, **links), None),
        )
    elif name == "winogavil":
        folder = root / name
        yield Source(
            "folder",
            (folder / TABLE, folder / "images"),
            lambda: (winogavil(folder, **links), folder / "images"),
        )
    elif name == "objectnet":
        yield Source(
            "folder",
            (root / name,),
            lambda: (objectnet(root / name, **links), None),
        )
    elif name.startswith("imagenet"):
        folder, names = datasets.imagenet_files(root, name)
        yield Source(
            "folder",
            (folder, names),
            lambda: (datasets.class_folders(folder, name, **links), names),
        )
