"""Data sets that are on disk, as streams of pictures with what belongs to them.

Every data set has a name, perhaps a length, and a function that yields
`(key, picture, note)`: the picture as a path, bytes or an array, and its list
of captions or its label. It can be read many times, in the same order.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from align_keras.classes import check_templates
from align_keras.data.captions import read_captions
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import list_images
from align_keras.io.file_names import natural_order
from align_keras.io.json_files import read_json
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines

# What the literature takes of a picture's captions; MSCOCO has up to 7.
CAPTIONS_PER_IMAGE = 5


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Pictures with their captions or labels.

    Args:
        name: string. How results call it.
        examples: callable. Returns an iterator of `(key, picture, note)`.
        total: integer or `None`. Number of examples.
        class_names: list of strings, or `None`. What labels stand for: names
            of folders, or those of a TFDS data set.
    """

    name: str
    examples: Callable
    total: int | None = None
    class_names: list | None = None


# === Captions ===


def karpathy(
    captions,
    folder,
    split="test",
    name=None,
    captions_per_image=CAPTIONS_PER_IMAGE,
):
    """Pictures of Karpathy's splits, or of another caption file.

    Args:
        captions: string or `pathlib.Path`. A file that
            `align_keras.data.read_captions` takes, such as
            `dataset_coco.json`.
        folder: string or `pathlib.Path`. The pictures, in the subfolders that
            the file names or all in one place.
        split: string. Splits, separated by commas, as in `"train,restval"`.
            `None` takes all. Defaults to `"test"`.
        name: string. Defaults to the name of the file.
        captions_per_image: integer. How many of the first captions to take of
            each picture; `None` for all. Defaults to `5`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: the caption file, or one of the pictures, is
            missing.
        ValueError: the file is wrong, or has no such split.
    """
    folder = Path(folder)
    found = read_captions(captions, split=split)
    if not found:
        raise ValueError(
            f"The caption file `{captions}` has no picture of the split "
            f"{split!r}."
        )
    return DataSet(
        name or Path(captions).stem,
        lambda: (
            (path, find_picture(folder, path), texts[:captions_per_image])
            for path, texts in found.items()
        ),
        len(found),
    )


def read_sentences(path, names):
    """Read the texts of captions by the ids that Crisscrossed Captions uses.

    Args:
        path: string or `pathlib.Path`. Karpathy's `dataset_coco.json`.
        names: list of strings such as `"COCO_val2014:sentid:411553"`.

    Returns:
        A list of strings, in the order of `names`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a caption is missing, or the file has another form.
    """
    path = Path(path)
    try:
        texts = {
            str(sentence["sentid"]): sentence["raw"].strip()
            for image in read_json(path)["images"]
            for sentence in image["sentences"]
        }
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"The caption file `{path}` is not in Karpathy's form: an object "
            "with `images`, each with `sentences` that have `sentid` and `raw`."
        ) from None
    try:
        return [texts[name.rpartition(":")[2]] for name in names]
    except KeyError as error:
        raise ValueError(
            f"The caption file `{path}` has no sentence with the id {error}, "
            "which Crisscrossed Captions names."
        ) from None


def find_picture(folder, name):
    """Find a picture in the subfolder that its name says, or without it."""
    for path in (Path(folder) / name, Path(folder) / Path(name).name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"There is no picture `{name}` in `{folder}`, neither in the folder "
        "that its name says nor directly."
    )


def records(pattern, name=None):
    """Pictures of TFRecord files.

    Args:
        pattern: string or list of strings. A folder, a glob or paths.
        name: string. Defaults to the pattern.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: no file matches.
    """
    from align_keras.data import count_records
    from align_keras.data import iterate_records

    return DataSet(
        name or str(pattern),
        lambda: (
            (record["key"], record["image"], record["captions"])
            for record in iterate_records(pattern)
        ),
        count_records(pattern),
    )


def multi30k(folder, language, images, split="test"):
    """Pictures of Multi30k with captions of one language.

    Args:
        folder: string or `pathlib.Path`. Holds `{split}_images.txt`, the file
            name of a picture in each line, and either `{split}.{language}`
            with the caption of that picture in the same line, or
            `{split}.1.{language}` to `{split}.5.{language}`.
        language: string, such as `"de"`.
        images: string or `pathlib.Path`. The pictures of Flickr30k.
        split: string. Defaults to `"test"`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files differ in length.
    """
    folder = Path(folder)
    names = _lines(folder / f"{split}_images.txt")
    files = sorted(folder.glob(f"{split}.[1-5].{language}"))
    files = files or [folder / f"{split}.{language}"]
    columns = [_lines(file) for file in files]
    for file, column in zip(files, columns, strict=True):
        if len(column) != len(names):
            raise ValueError(
                f"`{file}` has {len(column)} lines, but there are "
                f"{len(names)} pictures in `{split}_images.txt`."
            )
    captions = list(zip(*columns, strict=True))
    return DataSet(
        f"multi30k_{language}",
        lambda: (
            (name, find_picture(images, name), list(texts))
            for name, texts in zip(names, captions, strict=True)
        ),
        len(names),
    )


def _lines(path):
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    lines = split_lines(decode_text(path.read_bytes(), "strict"))
    return "\n".join(lines).strip("\n").split("\n")


def tfds_captions(
    name="coco_captions",
    split="test",
    data_dir=None,
    captions_per_image=CAPTIONS_PER_IMAGE,
):
    """Pictures of a TFDS data set with captions in the form of MSCOCO's.

    Args:
        name: string. Defaults to `"coco_captions"`, whose splits are
            Karpathy's.
        split: string. Defaults to `"test"`.
        data_dir: string. Where TFDS keeps its data. Defaults to its own
            place.
        captions_per_image: integer. Defaults to `5`.

    Returns:
        `DataSet` with lists of captions.

    Raises:
        FileNotFoundError: the data set is not there yet.
        ImportError: tensorflow-datasets is not installed.
    """

    def note(example):
        texts = [text.decode() for text in example["captions"]["text"]]
        return texts[:captions_per_image]

    return _tfds(name, split, data_dir, note)


# === Labels ===


def class_folders(folder, name=None):
    """Pictures in one folder for each class.

    Args:
        folder: string or `pathlib.Path`. Its subfolders are the classes, in
            the order of their names, in which numbers count as
            numbers: 1, 2, 10.
        name: string. Defaults to the name of the folder.

    Returns:
        `DataSet` with integer labels.

    Raises:
        FileNotFoundError: there are no subfolders with pictures.
    """
    folder = Path(folder)
    classes = natural_order(
        path.name
        for path in folder.glob("*")
        if path.is_dir() and not is_junk(path.name)
    )
    found = [
        (folder / class_name / image, label)
        for label, class_name in enumerate(classes)
        for image in list_images(folder / class_name)
    ]
    if not found:
        raise FileNotFoundError(
            f"`{folder}` has no subfolders with pictures, one for each class."
        )
    return DataSet(
        name or folder.name,
        lambda: (
            (path.relative_to(folder).as_posix(), path, label)
            for path, label in found
        ),
        len(found),
        classes,
    )


def tfds_labels(
    name, split, data_dir=None, label="label", picture=None, limit=None
):
    """Pictures of a TFDS data set with labels.

    Args:
        name: string. The name of the data set, with its configuration.
        split: string, such as `"train[:800]"`.
        data_dir: string. Where TFDS keeps its data. Defaults to its own
            place.
        label: string, the feature that is the label; or a callable that takes
            an example of NumPy arrays and returns an integer. Defaults to
            `"label"`.
        picture: callable that turns the bytes of a picture into an array.
            Defaults to `None`, the bytes as they are.
        limit: integer. Take the first examples alone. Defaults to `None`.

    Returns:
        `DataSet` with integer labels.

    Raises:
        FileNotFoundError: the data set is not there yet.
        ImportError: tensorflow-datasets is not installed.
    """

    def note(example):
        return int(label(example) if callable(label) else example[label])

    return _tfds(name, split, data_dir, note, label, picture, limit)


def _tfds(name, split, data_dir, note, label=None, picture=None, limit=None):
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir)
    try:
        # Pictures stay files: a reader in threads decodes them as it needs.
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
            image = image if picture is None else picture(image)
            yield f"{name}/{split}/{number}", image, note(example)

    total = limit
    if builder.info.splits:
        total = builder.info.splits[split].num_examples
        total = total if limit is None else min(total, limit)
    return DataSet(f"{name}/{split}", examples, total, classes)


def import_tfds():
    """Import tensorflow-datasets, or say how to get it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "TFDS data sets need tensorflow-datasets: pip install "
            '"align-keras[evaluation]".'
        ) from error
    return tfds


# === Names of classes ===


@dataclasses.dataclass(frozen=True)
class Classes:
    """What classes are called, and how prompts are made.

    Args:
        keys: list of strings, which folders or labels of data sets carry.
        names: list of lists of strings: the names of each class.
        templates: list of strings with `{}` where the name goes, or `None`.
    """

    keys: list
    names: list
    templates: list | None = None

    def find(self, labels):
        """Find the class of each label of a data set.

        Args:
            labels: list of strings: keys, positions, or names.

        Returns:
            A list of positions.

        Raises:
            ValueError: a label is none of these.
        """
        lookup = {}
        for position, names in enumerate(self.names):
            for name in names:
                lookup.setdefault(name.lower(), position)
        for position in range(len(self.keys)):
            lookup[str(position)] = position
        lookup.update({key: n for n, key in enumerate(self.keys)})
        found = []
        for label in labels:
            position = lookup.get(label, lookup.get(label.lower()))
            if position is None:
                raise ValueError(
                    f"The class names have no entry for the label {label!r}: "
                    "it is neither a key, nor a position, nor a name there."
                )
            found.append(position)
        return found


def read_classes(path):
    """Read names of classes, and templates, from a JSON file.

    Args:
        path: string or `pathlib.Path`. `{"classes": ..., "templates": [...]}`
            where `classes` is a list of names, in the order of the labels, or
            an object from folder names to names. A name may be a list of
            names. `templates` may be missing; a list or object alone stands
            for `classes`.

    Returns:
        `Classes`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form.

    Example:

    ```python
    Path("classes.json").write_text('{"classes": ["cat", "dog"]}')
    read_classes("classes.json").names  # [["cat"], ["dog"]]
    ```
    """
    content = read_json(Path(path))
    templates = None
    if isinstance(content, dict) and "classes" in content:
        templates = content.get("templates")
        content = content["classes"]
    if isinstance(content, list):
        keys = [str(number) for number in range(len(content))]
        content = dict(zip(keys, content, strict=True))
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"`{path}` must hold a list of class names, or an object from "
            f"folder names to class names. Received: {type(content).__name__}"
        )
    names = [
        [name] if isinstance(name, str) else name for name in content.values()
    ]
    for key, entry in zip(content, names, strict=True):
        is_list = isinstance(entry, list) and entry
        if not is_list or not all(isinstance(name, str) for name in entry):
            raise ValueError(
                f"`{path}` must name each class by a string or a list of "
                f"strings. Received for {key!r}: {content[key]!r}"
            )
    return Classes(list(content), names, check_templates(templates, path))
