"""Convert raw files to normalised rows, with one part for each file.

The rules see nothing but these columns:

| column        | type   | meaning                                          |
|---------------|--------|--------------------------------------------------|
| `row_id`      | int64  | number of the file × 10**12 + number of the row  |
| `id`          | string | the input's own id, or null                      |
| `url`         | string | address or path of the image                     |
| `text`        | string | the text in Unicode's form NFC                   |
| `tokens`      | string | its unigrams, lower case, separated by one space |
| `num_tokens`  | int32  | number of unigrams                               |
| `text_length` | int32  | characters (code points) of `text`               |
| `width`       | int32  | pixels; null where missing or not positive       |
| `height`      | int32  | pixels; null where missing or not positive       |
| `id_key`      | int64  | hash of `id`                                     |
| `image_key`   | int64  | hash of what identifies an image                 |
| `text_key`    | int64  | hash of what identifies a text; null when empty  |
| `phash`       | int64  | perceptual hash of the image, or null            |
| `pair_key`    | int64  | with scores only: hash of `url` and `text`       |
| `id_pair_key` | int64  | with scores only: hash of `id` and `text`        |

They also see the columns that rules or `extra_columns` name, as strings or
float64. These have the prefix `input_`, since an input may have a column such
as COYO's `text_length`, which differs from the one above.
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable

import numpy as np

from align_keras.curation.input_files import column_types
from align_keras.curation.input_files import read_batches
from align_keras.curation.scores import pair_key
from align_keras.curation.text import normalize_text
from align_keras.curation.text import signed_hash
from align_keras.curation.text import tokenize
from align_keras.io.batches import table_suffix
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import check_type
from align_keras.io.columns import find_column
from align_keras.io.columns import holds_texts
from align_keras.io.columns import image_kind
from align_keras.io.columns import is_binary
from align_keras.io.columns import is_path
from align_keras.io.columns import value_type
from align_keras.io.optional import OptionalModule
from align_keras.io.text import BLANKS

arrow = OptionalModule("pyarrow", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")

SCORE_KEYS = ("pair_key", "id_pair_key")
ROWS_PER_FILE = 10**12
# Rows of one row group, the unit that engines read.
GROUP_ROWS = 122_880
GROUP_BYTES = 128 * 2**20
# Raise when the same input produces different rows.
VERSION = 5

# Roles of an input's columns, with the usual names of each. A URL identifies an
# image better than the path of some copy, so it comes first.
USUAL_COLUMNS = {
    "id": COLUMNS["id"],
    "url": COLUMNS["url"] + COLUMNS["image"],
    "text": COLUMNS["caption"],
    "width": COLUMNS["width"],
    "height": COLUMNS["height"],
    "phash": COLUMNS["phash"],
}


@dataclasses.dataclass(frozen=True)
class IngestTask:
    """One file to read.

    Attributes:
        number: int. The file's position among the inputs.
        path: string.
        columns: dict from a key of `USUAL_COLUMNS` to a column of the file,
            which replaces the usual names.
        numbers: tuple of strings. Further columns, read as float64.
        strings: tuple of strings. Further columns, read as strings.
        tokenizer: string. See `tokenize`.
        image_identity: string. The column that identifies an image.
        text_identity: string. `"normalized"` or `"exact"`.
        max_text_characters: int. Longer texts are truncated.
        image_folder: string or `None`. The folder of the images, which are
            then read for their sizes and perceptual hashes.
        allow_outside: bool. Whether to read images outside that folder.
        scored: bool. Whether scores are looked up for the rows.
    """

    number: int
    path: str
    columns: dict
    numbers: tuple = ()
    strings: tuple = ()
    tokenizer: str = "blanks"
    image_identity: str = "url"
    text_identity: str = "normalized"
    max_text_characters: int = 100_000
    image_folder: str | None = None
    allow_outside: bool = False
    scored: bool = False


def rows_schema(
    numbers: Iterable[str] = (),
    strings: Iterable[str] = (),
    scored: bool = False,
):
    """Return the Arrow schema of normalised rows.

    Args:
        numbers: list of strings. Further columns of type float64.
        strings: list of strings. Further columns of type string.
        scored: bool. Whether scores are looked up for the rows.
    """
    fields = [
        ("row_id", arrow.int64()),
        ("id", arrow.string()),
        ("url", arrow.string()),
        ("text", arrow.string()),
        ("tokens", arrow.string()),
        ("num_tokens", arrow.int32()),
        ("text_length", arrow.int32()),
        ("width", arrow.int32()),
        ("height", arrow.int32()),
        ("id_key", arrow.int64()),
        ("image_key", arrow.int64()),
        ("text_key", arrow.int64()),
        ("phash", arrow.int64()),
    ]
    if scored:
        fields += [(name, arrow.int64()) for name in SCORE_KEYS]
    fields += [(input_column(name), arrow.float64()) for name in numbers]
    fields += [(input_column(name), arrow.string()) for name in strings]
    return arrow.schema(fields)


def input_column(name: str) -> str:
    """Return the name of a further input column among normalised rows."""
    return f"input_{name}"


def find_columns(
    names: list[str], given: dict | None = None
) -> dict[str, str | None]:
    """Choose the columns of an input by their usual names.

    Args:
        names: list of strings. The columns of the input.
        given: dict. Columns that the user names, such as `{"text": "title"}`.

    Returns:
        dict from the keys of `USUAL_COLUMNS` to a column, or to `None` if the
        input has no such column.
    """
    named = {role: (name,) for role, name in (given or {}).items() if name}
    return {
        role: find_column(names, usual)
        for role, usual in (USUAL_COLUMNS | named).items()
    }


def choose_columns(
    path: str, given: dict | None = None
) -> tuple[list[str], dict[str, str | None]]:
    """Choose the columns of a file; see `find_columns`.

    Returns:
        Tuple of the list of the file's columns, and the dict of the chosen
        ones.

    Raises:
        UnfitColumn: The type of the text column cannot hold texts, or the type
            of the image column holds neither paths nor addresses.
        OSError, ValueError: The file is damaged.
    """
    types = column_types(path)
    found = find_columns(list(types), given)
    text, url = found["text"], found["url"]
    if text is not None:
        kind = types[text]
        check_type(path, text, kind, holds_texts(kind), "captions")
    if url is not None:
        kind = types[url]
        # Numbers can identify images, too.
        fits = image_kind(kind) or not arrow.types.is_nested(kind)
        check_type(path, url, kind, bool(fits), "paths or images")
    return list(types), found


def usual_names(
    found: dict[str, str | None], given: dict | None = None
) -> dict[str, tuple]:
    """Return the other names that JSON objects may use for each column.

    Args:
        found: dict, as `find_columns` returns it.
        given: dict. Columns that the user names; these have no other names.

    Returns:
        dict from the columns to tuples of strings, see `read_batches`.
    """
    return {
        name: () if (given or {}).get(role) else USUAL_COLUMNS[role]
        for role, name in found.items()
        if name is not None
    }


def ingest_file(task: IngestTask, target) -> tuple[dict, list[str]]:
    """Write the normalised rows of one file.

    Args:
        task: `IngestTask`.
        target: string or open binary file for the Parquet file.

    Returns:
        Tuple of a dict of counts (`"rows"`, and the number of rows with each
        defect) and the list of the file's columns, under the names that they
        have in normalised rows.

    Raises:
        OSError, ValueError: The file is damaged, or has no text column. The
            caller must then discard `target`, since a file counts as a whole
            or not at all.
    """
    counts = collections.Counter(rows=0)
    schema = rows_schema(task.numbers, task.strings, task.scored)
    names, found = choose_columns(task.path, task.columns)
    if names and found["text"] is None:
        raise ValueError(f"no text column among {', '.join(names)}")
    further = {*task.numbers, *task.strings} & set(names)
    wanted = {**dict.fromkeys(further, ()), **usual_names(found, task.columns)}
    with parquet.ParquetWriter(target, schema, compression="snappy") as writer:
        waiting, rows, size = [], 0, 0
        for columns, bad_lines in read_batches(
            task.path, wanted, found["text"]
        ):
            counts["unreadable_lines"] += bad_lines
            if not columns:
                continue
            batch = _normalize(task, columns, found, schema, counts)
            waiting.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(arrow.Table.from_batches(waiting))
                waiting, rows, size = [], 0, 0
        if waiting:
            writer.write_table(arrow.Table.from_batches(waiting))
    if not counts["rows"] and counts["unreadable_lines"]:
        raise ValueError(
            f"none of its {counts['unreadable_lines']} lines can be read"
        )
    if (
        task.image_identity == "url"
        and 0 < counts["rows"] == counts["images_without_path"]
    ):
        raise ValueError(
            f"the column `{found['url']}` holds images without paths that "
            "could tell rows apart: name another column under "
            "`columns`, as in `url: name`, or as `image_identity`"
        )
    columns = [role for role, name in found.items() if name]
    return dict(counts), [*columns, *map(input_column, further)]


def _normalize(task, columns, found, schema, counts):
    """Convert one batch of raw columns to one batch of rows."""
    columns = one_text_each(columns, found["text"])
    size = len(next(iter(columns.values())))
    first = task.number * ROWS_PER_FILE + counts["rows"]
    counts["rows"] += size

    def column(role):
        return columns.get(found[role])

    texts = _texts(column("text"), size, task.max_text_characters, counts)
    normal = [normalize_text(text) for text in texts]
    tokens = normal
    if task.tokenizer != "blanks":
        tokens = [tokenize(text, task.tokenizer) for text in normal]
    identity = normal
    if task.text_identity == "exact":
        identity = texts
    urls = _strings(_paths(column("url"), task.path, counts), size, counts)
    urls = [url and url.strip() for url in urls]
    counts["without_image"] += sum(not url for url in urls)
    ids = _strings(column("id"), size, counts)
    width, height, phash = _image_columns(task, column, urls, size, counts)
    data = {
        "row_id": np.arange(first, first + size),
        "id": ids,
        "url": urls,
        "text": texts,
        "tokens": tokens,
        "num_tokens": [t.count(" ") + 1 if t else 0 for t in tokens],
        "text_length": [len(text) for text in texts],
        "width": width,
        "height": height,
        "id_key": _keys(ids),
        "image_key": _keys(urls),
        "text_key": _keys(identity),
        "phash": phash,
    }
    if task.scored:
        for name, values in zip(SCORE_KEYS, (urls, ids), strict=True):
            data[name] = [
                pair_key(value, text) if value else None
                for value, text in zip(values, texts, strict=True)
            ]
    for name in task.numbers:
        numbers = _numbers(columns.get(name), size, counts)
        data[input_column(name)] = numbers
    for name in task.strings:
        strings = _strings(columns.get(name), size, counts)
        data[input_column(name)] = strings
    if task.image_identity == "phash":
        data["image_key"] = phash
    elif task.image_identity != "url":
        identity = input_column(task.image_identity)
        data["image_key"] = _keys(data[identity])
    return arrow.record_batch(
        [_array(data[field.name], field.type) for field in schema],
        schema=schema,
    )


def _array(values, kind):
    if isinstance(values, arrow.Array):
        return values
    # A missing number is NaN in NumPy.
    return arrow.array(values, kind, from_pandas=True)


def _keys(values):
    """Hash strings to an Arrow array; the empty string and `None` are null."""
    hashes = np.fromiter(
        (signed_hash(value) if value else 0 for value in values),
        "int64",
        len(values),
    )
    nothing = np.fromiter((not value for value in values), bool, len(values))
    return arrow.array(hashes, mask=nothing)


# === Columns ===


def one_text_each(columns, name):
    """Make one row for each text if rows hold lists of texts."""
    column = columns.get(name)
    if column is None or value_type(column.type) is None:
        return columns
    # A row without any text stays, so that it is counted.
    lists = [texts or [None] for texts in column.to_pylist()]
    rows = np.repeat(np.arange(len(lists)), [len(texts) for texts in lists])
    texts = [text for texts in lists for text in texts]
    columns = {n: c.take(arrow.array(rows)) for n, c in columns.items()}
    return columns | {name: arrow.array(texts, value_type(column.type))}


def _paths(column, path, counts):
    """Return the paths of a column that may hold images, paths or both."""
    if column is None or table_suffix(path) != ".parquet":
        return column
    if arrow.types.is_struct(column.type):
        column = column.field(column.type.get_field_index("path"))
    elif is_binary(column.type):
        paths = [v if v and is_path(v) else None for v in column.to_pylist()]
        column = arrow.array(paths, arrow.binary())
    else:
        return column
    counts["images_without_path"] += column.null_count
    return column


def _texts(column, size, longest, counts):
    texts = _strings(column, size, counts, "invalid_utf8_texts")
    counts["null_texts"] += sum(text is None for text in texts)
    # Other commands strip the same characters, so that scores match.
    texts = [text and text.strip(BLANKS) for text in texts]
    counts["blank_texts"] += sum(text == "" for text in texts)
    counts["cut_texts"] += sum(len(text or "") > longest for text in texts)
    return [
        unicodedata.normalize("NFC", text[:longest]) if text else ""
        for text in texts
    ]


def _strings(column, size, counts, defect="invalid_utf8_fields"):
    if column is None:
        return [None] * size
    return read_strings(column, counts, defect)


def read_strings(
    column,
    counts: collections.Counter | None = None,
    defect: str = "invalid_utf8_fields",
) -> list[str | None]:
    """Read a column as Python strings.

    Args:
        column: Arrow array.
        counts: `collections.Counter` of defects.
        defect: string. The key under which to count values that are not
            UTF-8. Their wrong bytes become U+FFFD.

    Returns:
        list of strings and `None`. Nested values such as lists are `None`.
    """
    counts = collections.Counter() if counts is None else counts
    kind = column.type
    if arrow.types.is_dictionary(kind):
        kind, column = kind.value_type, column.cast(kind.value_type)
    if arrow.types.is_nested(kind):
        return [None] * len(column)
    try:
        if arrow.types.is_large_string(kind) or arrow.types.is_string(kind):
            return column.to_pylist()
        # From bytes, this checks that they are UTF-8.
        return column.cast(arrow.string()).to_pylist()
    except (arrow.ArrowInvalid, UnicodeDecodeError):
        values = column.cast(arrow.large_binary()).to_pylist()
    strings = []
    for value in values:
        try:
            strings.append(value if value is None else value.decode())
        except UnicodeDecodeError:
            counts[defect] += 1
            strings.append(value.decode("utf-8", "replace"))
    return strings


def _numbers(column, size, counts):
    """Read a column as float64; missing and invalid values become NaN."""
    if column is None:
        return np.full(size, np.nan)
    kind = column.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        numbers = column.cast("float64", safe=False)
        return numbers.to_numpy(zero_copy_only=False)
    numbers = np.full(size, np.nan)
    for row, value in enumerate(_strings(column, size, counts)):
        try:
            numbers[row] = value or np.nan
        except ValueError:
            counts["invalid_numbers"] += 1
    return numbers


def _sides(column, size, counts):
    """Read sides in pixels; 0 stands for missing and for invalid values."""
    numbers = _numbers(column, size, counts)
    good = (numbers > 0) & (numbers < 2**31) & (numbers == np.floor(numbers))
    counts["invalid_sizes"] += int(np.sum(~good & ~np.isnan(numbers)))
    return np.where(good, numbers, 0).astype("int32")


def _image_columns(task, column, urls, size, counts):
    """Return Arrow arrays of widths, heights and perceptual hashes."""
    width = _sides(column("width"), size, counts)
    height = _sides(column("height"), size, counts)
    phash, known = read_hashes(column("phash"), size, counts)
    if task.image_folder is not None:
        from align_keras.curation.perceptual_hash import OUTSIDE
        from align_keras.curation.perceptual_hash import measure_images

        measured = measure_images(task.image_folder, urls, task.allow_outside)
        for row, found in enumerate(measured):
            if found == OUTSIDE:
                counts["images_outside_folder"] += 1
                continue
            if found is None:
                counts["unreadable_images"] += bool(urls[row])
                continue
            if not known[row]:
                phash[row], known[row] = found.phash, True
            width[row] = width[row] or found.width
            height[row] = height[row] or found.height
    counts["without_size"] += int(np.sum((width == 0) | (height == 0)))
    counts["without_phash"] += int(np.sum(~known))
    return (
        arrow.array(width, mask=width == 0),
        arrow.array(height, mask=height == 0),
        arrow.array(phash, mask=~known),
    )


def read_hashes(
    column,
    size: int | None = None,
    counts: collections.Counter | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of 64-bit hashes.

    Args:
        column: Arrow array of integers, or of strings that `parse_hash` can
            read; or `None`.
        size: int. Number of rows; required if there is no column.
        counts: `collections.Counter`. Its `"invalid_hashes"` is increased.

    Returns:
        Tuple of an int64 array of the hashes, and a bool array that is true
        where a hash is known.
    """
    size = len(column) if size is None else size
    counts = collections.Counter() if counts is None else counts
    hashes, known = np.zeros(size, "int64"), np.zeros(size, bool)
    if column is None:
        return hashes, known
    if column.type in (arrow.uint64(), arrow.int64()):
        filled = column.fill_null(0).to_numpy(zero_copy_only=False)
        known[:] = column.is_valid().to_numpy(zero_copy_only=False)
        return filled.view("int64").copy(), known
    for row, value in enumerate(_strings(column, size, counts)):
        if value:
            try:
                hashes[row], known[row] = parse_hash(value), True
            except ValueError:
                counts["invalid_hashes"] += 1
    return hashes, known


def parse_hash(value: int | str) -> int:
    """Read a 64-bit hash as a signed integer.

    Args:
        value: int or string. A signed or unsigned integer, or 16 hexadecimal
            digits (the format of COYO).

    Returns:
        int, from -2**63 to 2**63 - 1.

    Raises:
        ValueError: The value is neither.
    """
    if isinstance(value, str):
        digits = value.strip()
        if len(digits) != 16:
            raise ValueError(
                "A perceptual hash must have 16 hexadecimal digits. "
                f"Received: {value!r}"
            )
        value = int(digits, 16)
    if not -(2**63) <= value < 2**64:
        raise ValueError(
            f"A perceptual hash must be a 64-bit integer. Received: {value!r}"
        )
    return value - 2**64 if value >= 2**63 else value
