"""Run all evaluations for which a directory holds the data."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.loading import load_embedder
from align_keras.embedding.vector_cache import file_name
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.composition import ARO
from align_keras.evaluation.composition import SUGAR_CREPE
from align_keras.evaluation.composition import measure_composition
from align_keras.evaluation.composition import sugar_crepe
from align_keras.evaluation.composition import visual_genome
from align_keras.evaluation.composition import winoground
from align_keras.evaluation.cxc import measure_cxc
from align_keras.evaluation.cxc_data import COLUMNS as CXC_FILES
from align_keras.evaluation.datacomp import find_sources
from align_keras.evaluation.datacomp import measure_datacomp
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.knn import measure_knn
from align_keras.evaluation.linear_probe import measure_linear_probe
from align_keras.evaluation.markdown_report import write_markdown_report
from align_keras.evaluation.multilingual import crossmodal3600
from align_keras.evaluation.multilingual import measure_multilingual
from align_keras.evaluation.multilingual import multi30k
from align_keras.evaluation.objectnet_data import objectnet
from align_keras.evaluation.results import Result
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.evaluation.words import measure_words
from align_keras.evaluation.zero_shot import measure_zero_shot
from align_keras.io.file_names import glob_visible
from align_keras.io.fingerprints import file_digest
from align_keras.io.lists import path_list
from align_keras.io.mirrors import locked
from align_keras.io.mirrors import reads

logger = logging.getLogger("align_keras")

FINE_GRAINED = ("flowers102", "pets", "cars", "food101")
# Labelled data sets of TFDS, with their splits for training, validation, test.
TFDS_SPLITS: dict[str, tuple[str, str | None, str]] = {
    "oxford_flowers102": ("train", "validation", "test"),
    "oxford_iiit_pet": ("train", None, "test"),
    "cars196": ("train", None, "test"),
    "food101": ("train", None, "validation"),
}


class Job(NamedTuple):
    """One evaluation, and the data it needs on disk.

    Attributes:
        name: string. The name of the evaluation.
        needs: tuple of `pathlib.Path`. Files and folders that must exist.
        run: callable. Takes an embedder and keyword arguments, and returns a
            `Result`.
    """

    name: str
    needs: tuple[Path, ...]
    run: Callable[..., Result]


def list_jobs(root: str | Path, allow_outside: bool = False) -> list[Job]:
    """List all evaluations that a directory could hold data for.

    Args:
        root: string or `pathlib.Path`. A directory in the layout of
            docs/evaluation.md.
        allow_outside: bool. Whether links may lead out of a data set.
            Defaults to `False`.

    Returns:
        A list of `Job`.
    """
    root = Path(root)
    known = [
        *_caption_jobs(root, allow_outside),
        *_multilingual_jobs(root, allow_outside),
        *_imagenet_jobs(root, allow_outside),
        *_probe_jobs(root, allow_outside),
        *_composition_jobs(root, allow_outside),
        _datacomp_job(root, allow_outside),
        *_tfds_jobs(root / "tfds"),
        Job(
            "words-simlex999",
            (root / "simlex999" / "SimLex-999.txt",),
            lambda embedder, batch_size, cache, **options: measure_words(
                embedder, root / "simlex999" / "SimLex-999.txt", **options
            ),
        ),
    ]
    own = list(_own_jobs(root, allow_outside))
    names = {job.name for job in known}
    for job in own:
        if job.name in names:
            raise ValueError(
                f"`{job.needs[0]}` has the name of another evaluation, "
                f"`{job.name}`: rename the folder."
            )
    return [*known, *own]


def _caption_jobs(root, allow_outside):
    def captions(file, images, name, folds=1):
        def run(embedder, **options):
            data = datasets.karpathy(
                file, images, name=name, allow_outside=allow_outside
            )
            return measure_retrieval(embedder, data, folds=folds, **options)

        suffix = f"_{folds}_folds" if folds > 1 else ""
        return Job(f"retrieval-{name}{suffix}", (file, images), run)

    flickr, coco = root / "flickr30k", root / "mscoco"
    yield captions(
        flickr / "dataset_flickr30k.json", flickr / "images", "flickr30k"
    )
    coco_file = coco / "dataset_coco.json"
    yield captions(coco_file, coco / "images", "mscoco")
    yield captions(coco_file, coco / "images", "mscoco", folds=5)
    yield Job(
        "cxc",
        (
            *(root / "cxc" / f"{task}_test.csv" for task in CXC_FILES),
            coco_file,
            coco / "images",
        ),
        lambda embedder, **options: measure_cxc(
            embedder,
            root / "cxc",
            coco_file,
            coco / "images",
            allow_outside=allow_outside,
            **options,
        ),
    )


def _multilingual_jobs(root, allow_outside):
    def job(name, read, *needs):
        def run(embedder, **options):
            data = read(allow_outside=allow_outside)
            return measure_multilingual(embedder, data, **options)

        return Job(f"multilingual-{name}", needs, run)

    folder, images = root / "multi30k", root / "flickr30k" / "images"
    read = functools.partial(multi30k, folder, images)
    listed = folder / "data/task1/image_splits/test_2016_flickr.txt"
    files = glob_visible(folder, "data/task[12]/raw/test_2016*")
    yield job("multi30k", read, listed, *files, images)
    folder = root / "xm3600"
    read = functools.partial(crossmodal3600, folder)
    yield job("xm3600", read, folder / "captions.jsonl", folder / "images")


def _imagenet_jobs(root, allow_outside):
    train, test = root / "imagenet" / "train", root / "imagenet" / "val"
    for variant in ("", "_v2", "_r", "_a", "_sketch"):
        name = f"imagenet{variant}"
        files = datasets.imagenet_files(root, name)
        yield _zero_shot(name, *files, allow_outside)
    folder, names = root / "objectnet", root / "imagenet" / "classes.json"

    def objects(embedder, **options):
        data = objectnet(folder, allow_outside=allow_outside)
        # All of ImageNet's classes compete, as its authors define it.
        return measure_zero_shot(
            embedder, data, names, all_classes=True, **options
        )

    yield Job("zero-shot-objectnet", (folder, names), objects)

    def knn(embedder, **options):
        rows = datasets.class_folders(train, "imagenet_train", allow_outside)
        queries = datasets.class_folders(test, "imagenet", allow_outside)
        return measure_knn(embedder, rows, queries, **options)

    yield Job("knn-imagenet", (train, test), knn)


def _zero_shot(name, folder, names, allow_outside):
    def run(embedder, **options):
        data = datasets.class_folders(folder, name, allow_outside)
        return measure_zero_shot(embedder, data, names, **options)

    return Job(f"zero-shot-{name}", (folder, names), run)


def _probe_jobs(root, allow_outside):
    for name in ("imagenet", *FINE_GRAINED):
        test = "val" if name == "imagenet" else "test"
        folders = {
            "train": root / name / "train",
            "test": root / name / test,
        }
        validation = root / name / "validation"
        if validation.is_dir():
            folders["validation"] = validation

        def run(embedder, name=name, folders=folders, **options):
            data = {
                part: datasets.class_folders(
                    folder,
                    name if part == "test" else f"{name}_{part}",
                    allow_outside,
                )
                for part, folder in folders.items()
            }
            return measure_linear_probe(embedder, **data, **options)

        yield Job(f"linear-probe-{name}", tuple(folders.values()), run)


def _composition_jobs(root, allow_outside):
    def job(name, needs, read, *arguments):
        def run(embedder, **options):
            data = read(*arguments, allow_outside=allow_outside)
            return measure_composition(embedder, data, **options)

        return Job(f"composition-{name}", needs, run)

    folder = root / "winoground"
    needs = folder / "examples.jsonl", folder / "images"
    yield job("winoground", needs, winoground, folder)
    folder, images = root / "sugarcrepe", root / "mscoco" / "val2017"
    files = [folder / f"{category}.json" for category in SUGAR_CREPE]
    needs = *files, images
    yield job("sugarcrepe", needs, sugar_crepe, folder, images)
    folder = root / "aro"
    for kind, file in ARO.items():
        needs = folder / file, folder / "images"
        yield job(f"vg_{kind}", needs, visual_genome, folder, kind)


def _datacomp_job(root, allow_outside):
    def run(embedder, **options):
        return measure_datacomp(
            embedder, root, allow_outside=allow_outside, **options
        )

    folder, needs = root / "datacomp", ()
    if folder.is_dir():
        found, _ = find_sources(root, allow_outside)
        needs = dict.fromkeys(path for s in found.values() for path in s.needs)
    return Job("datacomp", (folder, *needs), run)


def _own_jobs(root, allow_outside):
    """Yield the evaluations of the user's own data sets."""
    for folder in glob_visible(root / "retrieval", "*/"):

        def run(embedder, folder=folder, **options):
            data = datasets.captioned(
                folder, name=folder.name, allow_outside=allow_outside
            )
            return measure_retrieval(embedder, data, **options)

        yield _apart(Job(f"retrieval-{folder.name}", (folder,), run))
    for folder in glob_visible(root / "zero_shot", "*/"):
        names = folder / "classes.json"
        yield _apart(_zero_shot(folder.name, folder, names, allow_outside))


def _apart(job):
    """Keep the vectors of a job apart from those of other jobs."""

    def run(embedder, cache, **options):
        return job.run(embedder, cache=cache / job.name, **options)

    return job._replace(run=run)


def _tfds_jobs(folder):
    def captions(embedder, **options):
        data = datasets.tfds_captions(data_dir=str(folder))
        return measure_retrieval(embedder, data, **options)

    name = "coco_captions"
    yield Job(f"retrieval-tfds-{name}", (folder / name,), captions)
    for name, splits in TFDS_SPLITS.items():

        def load(split, name=name):
            if split is None:
                return None
            return datasets.tfds_labels(name, split, str(folder))

        def probe(embedder, load=load, splits=splits, **options):
            train, validation, test = map(load, splits)
            return measure_linear_probe(
                embedder, train, test, validation, **options
            )

        def zero_shot(embedder, load=load, splits=splits, **options):
            return measure_zero_shot(embedder, load(splits[2]), **options)

        yield Job(f"zero-shot-tfds-{name}", (folder / name,), zero_shot)
        yield Job(f"linear-probe-tfds-{name}", (folder / name,), probe)


@reads("data_root")
@locked("output")
def measure_all(
    models: str | list[Embedder | keras.Model | str],
    data_root: str | Path,
    output: str | Path,
    batch_size: int = 64,
    progress: bool = True,
    samples: int = SAMPLES,
    allow_outside: bool = False,
) -> dict:
    """Run every evaluation that finds its data, and write one report.

    A finished evaluation of the same model on the same data is not repeated,
    and an interrupted one resumes from the vectors on disk. Neither applies to
    an `Embedder` without a fingerprint, which may have changed. A file counts
    as unchanged if its contents are the same, a directory if the number and
    the total size of its files are the same, a model of a hub if its version
    there is the same. If an evaluation fails, the report names it, and the
    others still run.

    Args:
        models: list of `Embedder`, `align_keras.AlignDualEncoder`, or strings
            for `load_embedder`.
        data_root: string or `pathlib.Path`. A directory in the layout of
            docs/evaluation.md.
        output: string or `pathlib.Path`. The directory for results, vectors,
            `report.md` and its plots.
        batch_size: int. Images per call of the network. Defaults to `64`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        samples: int. Resamples for the intervals. Defaults to `1000`.
        allow_outside: bool. Whether links may lead out of a data set.
            Defaults to `False`.

    Returns:
        A dictionary: `"results"` (list of `Result`), `"skipped"` (from the
        name of each evaluation that did not run to the reason), and
        `"report"` (its path).

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: no evaluation found its data, or results of two models
            would share a directory.
    """
    root, output = Path(data_root), Path(output)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no directory `{root}`.")
    jobs, results, skipped = list_jobs(root, allow_outside), [], {}
    folders: set[Path] = set()
    state = functools.cache(_state)
    for model in path_list(models):
        named = isinstance(model, (str, Path))
        embedder = load_embedder(str(model)) if named else as_embedder(model)
        folder = output / file_name(embedder.name).strip("-.")
        if folder in folders:
            raise ValueError(
                f"Two models would write their results to `{folder}`: use a "
                f"separate output for each. Received: {embedder.name}"
            )
        folders.add(folder)
        for job in jobs:
            missing = [path for path in job.needs if not path.exists()]
            if missing:
                skipped[job.name] = f"there is no {missing[0]}"
                continue
            identity = {
                "fingerprint": embedder.fingerprint,
                "samples": samples,
                "data": {
                    path.relative_to(root).as_posix(): state(path)
                    for path in job.needs
                },
            }
            try:
                result = _run(
                    job, embedder, folder, batch_size, progress, identity
                )
            # Whatever fails in one evaluation, the others can still run.
            except Exception as error:
                expected = isinstance(error, (ValueError, OSError, ImportError))
                reason = f"failed: {type(error).__name__}: {error}"
                logger.warning("%s %s", job.name, reason, exc_info=not expected)
                skipped[f"{job.name} of {embedder.name}"] = reason
                continue
            results.append(result)
            logger.info("%s\n%s\n", result["model"], describe_result(result))
    for name, reason in skipped.items():
        logger.info("Not run: %s: %s", name, reason)
    if not results:
        raise ValueError(
            f"No evaluation could run on `{root}`: see docs/evaluation.md for "
            f"the folders that it may hold. The first reason: "
            f"{next(iter(skipped.items()), None)}"
        )
    report = write_markdown_report(results, output, skipped)
    logger.info("The report is %s", report)
    return {"results": results, "skipped": skipped, "report": str(report)}


def _state(path):
    """Return the digest of a file, or count and size for a directory."""
    if path.is_file():
        return file_digest(path)
    sizes = [f.stat().st_size for f in path.rglob("*") if f.is_file()]
    return f"{len(sizes)} files of {sum(sizes)} bytes"


def _run(job, embedder, folder, batch_size, progress, identity):
    """Return the result of a job, from disk if it is finished."""
    path = folder / f"{job.name}.json"
    if embedder.fingerprint is not None and path.is_file():
        result = Result.load(path)
        same = all(result.get(key) == value for key, value in identity.items())
        if same and not result.get("tasks_failed"):
            return result
    result = job.run(
        embedder,
        batch_size=batch_size,
        progress=progress,
        cache=folder.parent / "vectors",
        samples=identity["samples"],
    )
    result.update(identity)
    result.save(path)
    return Result.load(path)
