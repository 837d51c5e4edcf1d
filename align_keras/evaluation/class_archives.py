"""Read labelled images from archives of CLIP_benchmark and DataComp."""

import io
import posixpath
from pathlib import Path

import numpy as np

from align_keras.classes import Classes
from align_keras.data.archives import DAMAGES
from align_keras.data.archives import read_members
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import path_within
from align_keras.io.file_names import is_image
from align_keras.io.file_names import sample_key
from align_keras.io.file_names import suffix_of
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.lists import check_templates
from align_keras.io.mirrors import reads
from align_keras.io.text import clean_text
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

# Suffix of the file with the group of an image.
_NOTES = ".npy"


@reads("folder")
def class_archives(
    folder: str | Path,
    name: str | None = None,
    grouped: bool = False,
    allow_outside: bool = False,
) -> tuple[DataSet, Classes]:
    """Read a folder of archives in DataComp's published form.

    Args:
        folder: string or `pathlib.Path`. Holds `classnames.txt` and
            `zeroshot_classification_templates.txt`, where `{c}` stands for
            the name of a class; and in `test` the archives `0.tar` and so on,
            and `nshards.txt` with their number. Each image has a `.cls` file
            with its label.
        name: string. Defaults to the name of the folder.
        grouped: bool. Whether each image also has a `.npy` file, whose first
            number is that of its group. Defaults to `False`.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        A pair: `DataSet` with labels, or with pairs of a label and a group;
        and `Classes` with the names and templates.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or an image has no label.
    """
    lines = {
        file: _lines(path_within(folder, file, allow_outside))
        for file in ("classnames.txt", "zeroshot_classification_templates.txt")
    }
    names, templates = lines.values()
    templates = [line.replace("{c}", "{}") for line in templates]
    classes = Classes(
        [str(n) for n in range(len(names))],
        [[name] for name in names],
        check_templates(templates, Path(folder)),
    )
    counted = path_within(folder, "test/nshards.txt", allow_outside)
    shards = read_text(counted).strip()
    if not shards.isdecimal():
        raise ValueError(
            f"`{counted}` must contain the number of archives. Received: "
            f"{shards!r:.40}"
        )
    paths = [
        path_within(folder, f"test/{number}.tar", allow_outside)
        for number in range(int(shards))
    ]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no `{path}`, which is one of the {shards} archives "
                f"of `{counted}`."
            )

    def examples():
        for path in paths:
            for key, image, label, group in _samples(path, grouped):
                if not 0 <= label < len(names):
                    raise ValueError(
                        f"In `{path}`, `{key}` has the label {label}, but "
                        f"there are only {len(names)} class names."
                    )
                note = (label, group) if grouped else label
                yield f"{path.stem}/{key}", image, note

    return DataSet(name or Path(folder).name, examples), classes


def _lines(path):
    found = [line.strip() for line in split_lines(read_text(path))]
    return [line for line in found if line]


def _samples(path, grouped):
    """Yield the key, image, label and group of each sample of an archive."""
    try:
        for key, files in _files(path):
            yield key, *_sample(key, files, grouped)
    except FileNotFoundError:
        raise
    except DAMAGES as error:
        raise ValueError(f"`{path}` cannot be read: {error}.") from error


def _files(path):
    """Yield consecutive files that share a name up to the first dot."""
    key, files = "", {}
    for tar, member in read_members(path):
        name = posixpath.normpath(member.name)
        suffix = suffix_of(name)
        if not is_image(name) and suffix not in (".cls", _NOTES):
            continue
        if files and sample_key(name) != key:
            yield key, files
            files = {}
        key = sample_key(name)
        if not member.isfile() or member.size > MAX_FILE_BYTES:
            raise ValueError(
                f"`{clean_text(name)}` is not a file, or is larger than "
                f"{MAX_FILE_BYTES} bytes"
            )
        contents = tar.extractfile(member)
        files["image" if is_image(name) else suffix] = contents.read()
    if files:
        yield key, files


def _sample(key, files, grouped):
    wanted = ["image", ".cls"] + [_NOTES] * grouped
    for part in wanted:
        if part not in files:
            raise ValueError(f"`{clean_text(key)}` has no {part}")
    text = files[".cls"].decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise ValueError(
            f"`{clean_text(key)}.cls` must hold a label. Received: {text!r:.40}"
        )
    group = _first_number(key, files[_NOTES]) if grouped else 0
    return files["image"], int(text), group


def _first_number(key, contents):
    numbers = np.load(io.BytesIO(contents), allow_pickle=False).ravel()
    if not numbers.size or numbers.dtype.kind not in "iuf":
        raise ValueError(f"`{clean_text(key)}.npy` holds no numbers")
    if numbers[0] != int(numbers[0]):
        raise ValueError(
            f"The first number of `{clean_text(key)}.npy` must be the number "
            f"of a group. Received: {numbers[0]}"
        )
    return int(numbers[0])
