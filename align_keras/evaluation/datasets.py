"""Read data sets on disk as streams of images with captions or labels.

Every data set has a name, perhaps a length, and a function that yields
`(key, image, note)`. The image is a path, bytes or an array, or a function that
returns one of these. The note is a list of captions, a dictionary from language
to such a list, or a label. A data set can be read many times in the same order.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_keras.classes import Classes
from align_keras.data import archives
from align_keras.data import open_records
from align_keras.data import sources
from align_keras.data.captions import read_captions
from align_keras.data.find_source import NOT_LISTED
from align_keras.data.find_source import find_source
from align_keras.data.find_source import held_in
from align_keras.data.find_source import left_over
from align_keras.data.open_source import read_files
from align_keras.data.record_files import local_source
from align_keras.data.tally import Tally
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import find_column
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import list_images
from align_keras.io.file_names import natural_order
from align_keras.io.folders import is_file_within
from align_keras.io.folders import resolve_within
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import reads
from align_keras.io.optional import OptionalModule
from align_keras.io.rows import read_rows
from align_keras.io.text import clean_text

tfds = OptionalModule("tensorflow_datasets", extra="evaluation")

logger = logging.getLogger("align_keras")

# The literature uses this many captions per image; MSCOCO has up to 7.
CAPTIONS_PER_IMAGE = 5
# To try for images whose suffix a published file does not give.
SUFFIXES = ("", ".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images with their captions or labels.

    Args:
        name: string. The name of the data set in results.
        examples: callable. Returns an iterator of `(key, image, note)`.
        total: integer or `None`. Number of examples, if known.
        class_names: list of strings, or `None`. The name of each label, from
            folders or from a TFDS data set.
        answers: callable or `None`. Takes `Classes` and returns for each label
            the list of positions in them that are right. `None` means that
            only the class with the name of the label is right.
    """

    name: str
    examples: Callable[[], Iterator[tuple[str, Any, Any]]]
    total: int | None = None
    class_names: list[str] | None = None
    answers: Callable[[Classes], list[list[int]]] | None = None


# === Captions ===


def captioned(
    source: str | Path | list[str],
    captions: str | Path | None = None,
    split: str | None = None,
    name: str | None = None,
    captions_per_image: int | None = None,
    allow_outside: bool = False,
) -> DataSet:
    """Read images with captions, in any form that `pack` reads.

    Args:
        source: string or `pathlib.Path`, see `pack`; or what `open_records`
            takes.
        captions: string or `pathlib.Path`. A caption file for the images in
            `source`. Defaults to the file in `source` that is called
            `captions`, if there is one.
        split: string. Splits of the caption file, separated by commas.
            Defaults to `"test"` if the caption file is JSON and names splits,
            otherwise to all.
        name: string. Defaults to the name of the caption file, or `source`.
        captions_per_image: integer. How many captions of each image in a
            caption file to use, starting with the first. Defaults to `5`.
        allow_outside: bool. Whether to read files outside of `source` that
            names or links point to. Defaults to `False`.

    Returns:
        `DataSet` with lists of captions. A warning names what is left out.

    Raises:
        FileNotFoundError: there are no data, or an image is missing.
        OutsideFolder: a name or a link leads out of `source`.
        ValueError: a file is invalid or of another kind, or an option for a
            caption file is given but there is none.
    """
    if not isinstance(source, (str, os.PathLike)):
        return records(source, name, allow_outside)
    asked = str(source)
    source, captions = local_source(source), local_copy(captions)
    found = find_source(source, captions, allow_outside=allow_outside)
    first = captions_per_image or CAPTIONS_PER_IMAGE
    if found.kind == "listed":
        (table,) = found.files
        split, tally = split or _usual_split(table), Tally()
        data = karpathy(table, source, split, name, first, allow_outside, tally)
        _warn_of_rest(found, source, tally.looked_at, allow_outside)
        return data
    options = {"split": split, "captions_per_image": captions_per_image}
    if found.kind == "table":
        options = {}
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{option}` is for a caption file, and `{source}` is read "
                "without one; pass one as `captions`."
            )
    if found.kind == "records":
        _warn_of_rest(found, source, found.files, allow_outside)
        return records(str(source), name, allow_outside)

    def read(file, tally):
        if found.kind == "table":
            folder = source if os.path.isdir(source) else None
            return sources.from_table(
                file, tally, folder, allow_outside, split=split
            )
        if found.kind == "archive":
            return archives.from_archive(file, tally)
        return sources.from_folder(file, tally, allow_outside=allow_outside)

    def examples():
        files, tally = found.files or [str(source)], Tally(_warn)
        named = captions or source
        pairs = read_files(named, files, read, tally, allow_outside)
        for key, image, texts in pairs:
            kept = texts[:first] if found.kind == "table" else texts
            yield key, image(), kept
        _warn_of_rest(found, source, tally.looked_at, allow_outside)

    return DataSet(name or asked, examples)


def _warn(name, reason):
    logger.warning("Left out %s: %s", name, reason)


def _warn_of_rest(found, source, looked_at, allow_outside):
    """Warn of what a source holds that was not read."""
    not_listed = []
    for name, reason, detail in left_over(
        found, source, looked_at, allow_outside
    ):
        if reason == NOT_LISTED:
            not_listed.append(name)
            continue
        _warn(name, f"{reason}: {detail}" if detail else reason)
    if not_listed:
        # There may be very many, so one warning counts them.
        _warn(f"{len(not_listed)} images, first {not_listed[0]}", NOT_LISTED)


def _usual_split(path):
    """Return the literature's split if a JSON file names splits."""
    if Path(path).suffix.lower() != ".json":
        return None
    told = (
        row.get(find_column(row, COLUMNS["split"]))
        for row in read_rows(path)
        if isinstance(row, dict)
    )
    return "test" if any(told) else None


@reads("captions", "folder")
def karpathy(
    captions: str | Path,
    folder: str | Path,
    split: str | None = "test",
    name: str | None = None,
    captions_per_image: int | None = CAPTIONS_PER_IMAGE,
    allow_outside: bool = False,
    tally: Tally | None = None,
) -> DataSet:
    """Read the images of Karpathy's splits, or of another caption file.

    Args:
        captions: string or `pathlib.Path`. A file that
            `align_keras.data.read_captions` takes, such as
            `dataset_coco.json`.
        folder: string or `pathlib.Path`. The folder of images, which lie in
            the subfolders that the file names, or directly in it.
        split: string. Splits, separated by commas, as in `"train,restval"`.
            `None` uses all. Defaults to `"test"`.
        name: string. Defaults to the name of the file.
        captions_per_image: integer. How many captions of each image to use,
            starting with the first; `None` uses all. Defaults to `5`.
        allow_outside: bool. See `captioned`.
        tally: `Tally`. Records what the file lists. Defaults to `None`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: the caption file, or one of the images, is
            missing.
        ValueError: the file is invalid, or has no such split.
    """
    folder = Path(folder)
    tally = Tally() if tally is None else tally
    found = read_captions(captions, split=split, tally=tally)
    if tally.reasons:
        logger.warning("Left out rows of `%s`: %s.", captions, tally.summary())
    # Images may also lie outside the subfolder that the file names.
    tally.looked_at.update(found, (Path(path).name for path in found))
    if not found:
        raise ValueError(
            f"The caption file `{captions}` has no image"
            + (f" of the split {split!r}." if split else ".")
        )
    return DataSet(
        name or Path(captions).stem,
        lambda: (
            (
                path,
                find_image(folder, path, allow_outside),
                texts[:captions_per_image],
            )
            for path, texts in found.items()
        ),
        len(found),
    )


def imagenet_files(root: Path, name: str) -> tuple[Path, Path]:
    """Return where ImageNet or a variant lies, and its names of classes.

    Args:
        root: `pathlib.Path`. A directory in the layout of docs/evaluation.md.
        name: string. Such as `"imagenet"` or `"imagenet_v2"`.

    Returns:
        A pair of paths: the folder with one subfolder for each class, and the
        file of names: the variant's own if it exists, otherwise ImageNet's.
    """
    own = root / name / "classes.json"
    names = own if own.is_file() else root / "imagenet" / "classes.json"
    return root / name / "val" if name == "imagenet" else root / name, names


def find_image(
    folder: str | Path,
    name: str,
    allow_outside: bool = False,
    suffixes: Sequence[str] = ("",),
) -> Path:
    """Find an image in the subfolder that its name gives, or directly.

    Args:
        folder: string or `pathlib.Path`.
        name: string. The name of the image, perhaps with subfolders.
        allow_outside: bool. Whether the name and links may lead out of the
            folder. Defaults to `False`.
        suffixes: tuple of strings. Suffixes to try, such as `SUFFIXES`.
            Defaults to none.

    Raises:
        FileNotFoundError: There is no such image.
        OutsideFolder: The name, or a link, leads out of the folder.
    """
    for candidate in (
        found + suffix
        for suffix in suffixes
        for found in (name, Path(name).name)
    ):
        resolve_within(folder, candidate, allow_outside)
        if is_file_within(folder, candidate, allow_outside):
            return Path(folder) / candidate
    raise FileNotFoundError(
        f"There is no image `{name}` in `{folder}`, neither in the subfolder "
        "that its name gives nor directly."
    )


def path_within(
    folder: str | Path, name: str, allow_outside: bool = False
) -> Path:
    """Return the path of a file or folder that a published data set holds.

    Raises:
        OutsideFolder: The path is a link that leads out of the folder.
    """
    resolve_within(folder, name, allow_outside)
    return Path(folder) / name


def records(
    pattern: Any, name: str | None = None, allow_outside: bool = False
) -> DataSet:
    """Read the images of TFRecord files.

    Args:
        pattern: what `open_records` takes.
        name: string. Defaults to the pattern.
        allow_outside: bool. See `captioned`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: no file matches.
    """
    opened = open_records(pattern, allow_outside)
    return DataSet(
        name or str(opened.source),
        lambda: (
            (record["key"], record["image"], record["captions"])
            for record in opened
        ),
        opened.total,
    )


def tfds_captions(
    name: str = "coco_captions",
    split: str = "test",
    data_dir: str | None = None,
    captions_per_image: int = CAPTIONS_PER_IMAGE,
) -> DataSet:
    """Read a TFDS data set whose captions have the form of MSCOCO's.

    Args:
        name: string. Defaults to `"coco_captions"`, whose splits are
            Karpathy's.
        split: string. Defaults to `"test"`.
        data_dir: string. Where TFDS keeps its data. Defaults to the default
            directory of TFDS.
        captions_per_image: integer. See `karpathy`. Defaults to `5`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: the data set has not been prepared.
        ImportError: tensorflow-datasets is not installed.
    """

    def note(example):
        texts = [text.decode() for text in example["captions"]["text"]]
        return texts[:captions_per_image]

    return _tfds(name, split, data_dir, note)


# === Labels ===


@reads("folder")
def class_folders(
    folder: str | Path, name: str | None = None, allow_outside: bool = False
) -> DataSet:
    """Read images that lie in one folder for each class.

    Args:
        folder: string or `pathlib.Path`. Its subfolders are the classes,
            sorted by name, with numbers in numerical order: 1, 2, 10.
        name: string. Defaults to the name of the folder.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        `DataSet` with integer labels.

    Raises:
        FileNotFoundError: there are no subfolders with images.
        OutsideFolder: a class or an image is a link that leads out of
            `folder`.
    """
    folder = Path(folder)
    inside = [path for path in folder.glob("*") if not is_junk(path.name)]
    for path in inside:
        if not path.exists():
            raise FileNotFoundError(f"The link `{path}` is broken.")
    classes = natural_order(path.name for path in inside if path.is_dir())
    found = [
        (image, label)
        for label, class_name in enumerate(classes)
        for image in list_images(folder, allow_outside, class_name)
    ]
    for image, _ in found:
        # Leaving images out would change the metrics, so this raises.
        if (folder / image).is_symlink():
            resolve_within(folder, image, allow_outside)
    taken = {image for image, _ in found}
    for image in held_in(folder, allow_outside):
        if image not in taken:
            _warn(clean_text(image), "not an image in a class folder")
    if not found:
        raise FileNotFoundError(
            f"`{folder}` has no subfolders with images, one for each class."
        )
    return DataSet(
        name or folder.name,
        lambda: ((image, folder / image, label) for image, label in found),
        len(found),
        classes,
    )


def tfds_labels(
    name: str,
    split: str,
    data_dir: str | None = None,
    label: str | Callable[[dict], int] = "label",
    decode: Callable[[bytes], Any] | None = None,
    limit: int | None = None,
) -> DataSet:
    """Read a TFDS data set with labels.

    Args:
        name: string. The name of the data set, with its configuration.
        split: string. Such as `"train[:800]"`.
        data_dir: string. Where TFDS keeps its data. Defaults to the default
            directory of TFDS.
        label: string or callable. The feature that is the label; or a function
            that takes an example of NumPy arrays and returns an integer.
            Defaults to `"label"`.
        decode: callable. Converts the bytes of an image to an array. Defaults
            to `None`: the bytes are not decoded here.
        limit: integer. The number of examples to use, starting with the
            first. Defaults to `None`, all.

    Returns:
        `DataSet` with integer labels.

    Raises:
        FileNotFoundError: the data set has not been prepared.
        ImportError: tensorflow-datasets is not installed.
    """

    def note(example):
        return int(label(example) if callable(label) else example[label])

    return _tfds(name, split, data_dir, note, label, decode, limit)


def _tfds(name, split, data_dir, note, label=None, decode=None, limit=None):
    builder = tfds.builder(name, data_dir=data_dir)
    try:
        # Images stay encoded, because the consumers decode them in threads.
        stream = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except AssertionError:
        where = "" if data_dir is None else f" --data_dir {data_dir}"
        raise FileNotFoundError(
            f"The TFDS data set `{name}` is not in `{builder.data_dir}`: fetch "
            f"it with `tfds build {name}{where}`, which also says what must be "
            "downloaded by hand."
        ) from None
    if limit is not None:
        stream = stream.take(limit)
    classes = None
    if isinstance(label, str):
        classes = getattr(builder.info.features[label], "names", None)

    def examples():
        for number, example in enumerate(tfds.as_numpy(stream)):
            image = example["image"]
            image = image if decode is None else decode(image)
            yield f"{name}/{split}/{number}", image, note(example)

    total = limit
    if builder.info.splits:
        total = builder.info.splits[split].num_examples
        total = total if limit is None else min(total, limit)
    return DataSet(f"{name}/{split}", examples, total, classes)


def require_same_classes(first: DataSet, second: DataSet) -> None:
    """Raise a `ValueError` if two data sets have different classes."""
    if first.class_names != second.class_names:
        odd = set(first.class_names or ()) ^ set(second.class_names or ())
        raise ValueError(
            f"`{first.name}` and `{second.name}` must have the same classes. "
            f"Only one of them has: {', '.join(sorted(odd)[:5])}"
        )
