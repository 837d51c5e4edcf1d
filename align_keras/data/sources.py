"""Where raw picture–text pairs come from: caption files, folders, archives.

Every source yields `(name, picture, captions)` one by one: the picture's path
inside the source, a function that reads its bytes, and its captions.
"""

import contextlib
import csv
import json
import posixpath
import tarfile
from pathlib import Path

from align_keras.data.records import decode_record
from align_keras.data.records import read_shard

PICTURE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
IMAGE_COLUMNS = (
    "image",
    "file_name",
    "filename",
    "filepath",
    "image_path",
    "path",
    "file",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "sentence", "alt_text")


def read_captions(path, image_column=None, caption_column=None, split=None):
    """Read a caption file.

    Args:
        path: string or `pathlib.Path`. The suffix tells the form: `.csv` and
            `.tsv` with a header line, `.jsonl` with one object per line,
            `.json` (Karpathy's form, or a list of objects), or `.parquet`
            (needs `align-keras[parquet]`). Text is UTF-8.
        image_column: string. Column with the picture's path. Defaults to the
            first that exists of image, file_name, filename, filepath,
            image_path, path, file.
        caption_column: string. Column with the caption or a list of captions.
            Defaults to the first that exists of caption, captions, text, txt,
            sentence, alt_text.
        split: string. Take only rows whose `split` column is one of these
            names, separated by commas, as in `"train,restval"`. Defaults to
            all rows.

    Returns:
        dict from the picture's path, normalised, to its list of captions.
        Pictures stand in the order of the file, and several rows of one
        picture give one list. Blank captions are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, the file is not UTF-8, or its form
            is not known.

    Example:

    ```python
    read_captions("captions.csv")  # {"bus.jpg": ["a red bus"], ...}
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no caption file `{path}`.")
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"The caption file `{path}` has an unknown suffix; use one of "
            f"{', '.join(sorted(readers))}."
        )
    wanted = set(split.split(",")) if split else None
    captions = {}
    try:
        for row in readers[path.suffix.lower()](path):
            pair = _select(path, row, image_column, caption_column, wanted)
            if pair is not None:
                captions.setdefault(pair[0], []).extend(pair[1])
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The caption file `{path}` is not UTF-8 (it holds the byte "
            f"{error.object[error.start]:#04x}); convert it first, for "
            "example with iconv."
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"The caption file `{path}` is not valid CSV: {error}."
        ) from error
    return captions


def from_caption_file(folder, captions):
    """Pictures of a folder, as a caption file lists them.

    Args:
        folder: `pathlib.Path` to which the names are relative.
        captions: dict as `read_captions` gives it.

    Yields:
        `(name, picture, captions)`, see the module.
    """
    for name, texts in captions.items():
        yield name, (folder / name).read_bytes, texts


def from_folder(folder, order=None):
    """Pictures of a folder with a `.txt` file of captions beside each.

    The text file has the picture's name; each line is a caption.

    Args:
        folder: `pathlib.Path`.
        order: callable. Takes a name and returns what to sort it by. Defaults
            to `None`, the order of the paths.
    """
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    ]
    if order is not None:
        names.sort(key=order)
    for name in names:
        path = folder / name
        texts = path.with_suffix(".txt")
        lines = texts.read_bytes() if texts.is_file() else b""
        yield name, path.read_bytes, _lines(lines)


def from_archive(archive):
    """Samples of one WebDataset `.tar`, read as a stream.

    Neighbouring files with one name up to the first dot are one sample: a
    picture, and its captions in a `.txt` (one per line) or in the field
    `caption` of a `.json`.

    Raises:
        tarfile.TarError, OSError: The archive is damaged; what came before
            the damage has been yielded.
    """
    with tarfile.open(archive, "r|*") as tar:
        name, sample = None, {}
        for member in tar:
            if not member.isfile():
                continue
            folder, base = posixpath.split(member.name)
            stem, _, suffix = base.partition(".")
            stem = posixpath.join(folder, stem)
            if stem != name and sample:
                yield from _sample(name, sample)
                sample = {}
            name, suffix = stem, f".{suffix.lower()}"
            if suffix in (*PICTURE_SUFFIXES, ".txt", ".json"):
                sample[suffix] = tar.extractfile(member).read()
        if sample:
            yield from _sample(name, sample)


def from_records(shard):
    """Pairs of one TFRecord file, of img2dataset or of `pack`.

    Raises:
        ValueError: The file is damaged; what came before the damage has been
            yielded.
    """
    for number, record in enumerate(read_shard(shard)):
        try:
            example = decode_record(record, require_captions=False)
        except ValueError as error:
            # No bytes are not a picture, and as such it will be counted.
            example = {"key": error.key, "image": b"", "captions": [""]}
        name = example["key"] or f"{Path(shard).stem}[{number}]"
        picture = example["image"]
        # The suffix is cut off again, and not a part of the key.
        yield f"{name}.jpg", lambda p=picture: p, example["captions"]


def _sample(name, files):
    pictures = [suffix for suffix in files if suffix in PICTURE_SUFFIXES]
    if not pictures:
        return
    texts = _lines(files.get(".txt", b""))
    if not texts and ".json" in files:
        with contextlib.suppress(ValueError, AttributeError):
            # Anything but an object with captions counts as no caption.
            texts = _texts(json.loads(files[".json"]).get("caption"))
    yield name + pictures[0], lambda: files[pictures[0]], texts


def _lines(contents):
    # A wrong byte spoils one character, not the sample.
    return _texts(contents.decode("utf-8", "replace").splitlines())


def _texts(value):
    """Captions that are not blank, of a string or a list of strings."""
    values = value if isinstance(value, (list, tuple)) else [value]
    values = [text.strip() for text in values if isinstance(text, str)]
    return [text for text in values if text]


# === Caption files ===


def _read_csv(path):
    # The module's own limit is below a caption of 20,000 words.
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Excel writes a byte order mark.
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter=delimiter)


def _read_jsonl(path):
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse_json(path, line, f" in line {number}")


def _read_json(path):
    rows = _parse_json(path, path.read_text("utf-8-sig"), "")
    if isinstance(rows, list):
        yield from rows
        return
    if not isinstance(rows, dict):
        raise ValueError(
            f"The caption file `{path}` must hold a list of objects or "
            f"Karpathy's form. Received: {type(rows).__name__}."
        )
    if "images" not in rows or "annotations" in rows:
        raise ValueError(
            f"The caption file `{path}` is neither a list of objects nor in "
            "Karpathy's form; its fields are: "
            f"{', '.join(sorted(rows)) or 'none'}."
        )
    for number, image in enumerate(rows["images"]):
        try:
            name = posixpath.join(image.get("filepath", ""), image["filename"])
            texts = [sentence["raw"] for sentence in image["sentences"]]
        except KeyError as error:
            raise ValueError(
                f"Picture number {number} in the caption file `{path}` has no "
                f"field {error}, which Karpathy's form needs."
            ) from error
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"Picture number {number} in the caption file `{path}` is not "
                f"in Karpathy's form: {error}."
            ) from error
        yield {"image": name, "caption": texts, "split": image.get("split")}


def _parse_json(path, text, place):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"The caption file `{path}` is not valid JSON{place}: {error}."
        ) from error


def _read_parquet(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"Reading `{path}` needs pyarrow: pip install "
            '"align-keras[parquet]".'
        ) from error
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _select(path, row, image_column, caption_column, wanted):
    """The picture's name and captions, or `None` for another split."""
    if not isinstance(row, dict):
        raise ValueError(
            f"The caption file `{path}` must hold objects. Received: {row!r}."
        )
    image = row[_column(path, row, "image_column", image_column, IMAGE_COLUMNS)]
    texts = row[
        _column(path, row, "caption_column", caption_column, CAPTION_COLUMNS)
    ]
    if wanted is not None:
        part = row[_column(path, row, "split", "split")]
        if part not in wanted:
            return None
    return posixpath.normpath(str(image or "")), _texts(texts)


def _column(path, row, argument, given, usual=()):
    """The name of the wanted column that this row has."""
    candidates = (given,) if given else usual
    for name in candidates:
        if name in row:
            return name
    existing = ", ".join(str(name) for name in row if name is not None)
    raise ValueError(
        f"The caption file `{path}` has no column {' or '.join(candidates)} "
        f"for `{argument}`; its columns are: {existing}."
    )
