"""Find the TFRecord files of a data set and count their records."""

import functools
import glob
import json
import logging
import os
from collections.abc import Iterable
from typing import Any

from align_keras.data.parts import FOLDER as PART
from align_keras.data.parts import shards_of_parts
from align_keras.data.records import ASKED
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard
from align_keras.data.records import record_offsets
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import is_records
from align_keras.io.file_names import list_files
from align_keras.io.file_names import records_stem
from align_keras.io.file_names import refuse_others
from align_keras.io.folders import check_member
from align_keras.io.json_files import is_count
from align_keras.io.json_files import unfit_field
from align_keras.io.lists import path_list
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import find_files
from align_keras.io.stores import is_directory
from align_keras.io.stores import is_store
from align_keras.io.stores import list_directory
from align_keras.io.stores import read_range
from align_keras.io.text import clean_text
from align_keras.io.threads import map_ahead

logger = logging.getLogger("align_keras")


# The fields of a manifest that are used here; see `read_object`.
_MANIFEST = {
    "shards?": [{"file": str, "records": is_count}],
    "arguments?": dict,
}


class RecordFiles:
    """The TFRecord files of a data set, with their numbers of records.

    Iterate over it to read the records one by one in file order. Each is a
    dict with `"key"` (string), `"image"` (bytes, the encoded image) and
    `"captions"` (list of strings, at least one). Records without an image or
    a caption are skipped and listed in `skipped`. Images are not decoded.

    Args:
        paths: list of strings. The files.
        counts: dict from file to its number of records. Defaults to `None`:
            the records are counted when the counts are first needed.
        source: string. The name of the files in messages. Defaults to their
            paths.

    Attributes:
        skipped: dict from the place of an unusable record,
            `"file.tfrecord[index] key"`, to the reason. A record that occurs
            again in a later epoch is listed once.

    Example:

    ```python
    for record in open_records("packed"):
        print(record["key"], record["captions"][0])
    ```
    """

    def __init__(
        self,
        paths: str | Iterable[str],
        counts: dict[str, int] | None = None,
        source: Any = None,
    ):
        self.paths = path_list(paths)
        self.source = self.paths if source is None else source
        self.skipped: dict[str, str] = {}
        if counts is not None:
            self.counts = counts

    def __str__(self):
        return str(self.source)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Dict from file to its number of records.

        Files that `pack` or img2dataset wrote next to the records hold the
        counts. Otherwise the record framing is read, of many remote files in
        parallel.
        """
        count = functools.partial(_count, functools.cache(_read_counts))
        remote = any(map(is_store, self.paths))
        counts = map_ahead(count, self.paths, ASKED if remote else 1)
        return dict(zip(self.paths, counts, strict=True))

    @property
    def in_random_order(self) -> bool:
        """Whether `pack` has put all files into random order."""
        manifests = self._manifests().values()
        return all(m.get("order") == "random" for m in manifests)

    def resized(self) -> dict[str, int]:
        """Return the folders in which `pack` resized images.

        Returns:
            dict from folder to the height and width in pixels.
        """
        sizes = {
            folder: manifest.get("arguments", {}).get("resize")
            for folder, manifest in self._manifests().items()
        }
        return {folder: size for folder, size in sizes.items() if size}

    def _manifests(self):
        folders = {os.path.dirname(path) for path in self.paths}
        return {folder: _read_manifest(folder) for folder in folders}

    def languages(self) -> dict[str, str]:
        """Return the language of each file: the folder that holds it.

        For a part that `pack` wrote, it is the parent of the part's folder.

        Returns:
            dict from file to folder.
        """
        return {path: _folder_of(path) for path in self.paths}

    @property
    def total(self) -> int:
        """The total number of records."""
        return sum(self.counts.values())

    def __iter__(self):
        for path in self.paths:
            for index, record in enumerate(read_shard(path)):
                try:
                    example = decode_record(record)
                except ValueError as error:
                    self.skip(path, index, error.key, str(error))
                    continue
                yield example

    def skip(self, path: str, index: int, key: str, reason: str) -> None:
        """List and log an unusable record, once per record."""
        place = f"{path}[{index}] {key}".rstrip()
        if place not in self.skipped:
            self.skipped[place] = reason
            logger.warning("Skipped record %s: %s", place, reason)


def open_records(source: Any, allow_outside: bool = False) -> RecordFiles:
    """Find the TFRecord files of a data set.

    Args:
        source: string or `pathlib.Path`. A folder that holds `*.tfrecord`
            files, one such file, or a glob; or a list of these. Addresses of a
            store such as `s3://` or `gs://` work, too. `RecordFiles` are
            returned as they are.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        `RecordFiles`, sorted by path. For a list, in its order, with each file
        once.

    Raises:
        FileNotFoundError: Nothing matches. The message names the source.
        OutsideFolder: A link leads out of the folder.
    """
    if isinstance(source, RecordFiles):
        return source
    if not isinstance(source, (list, tuple)):
        return RecordFiles(
            _find(os.fspath(source), allow_outside), source=source
        )
    paths = [
        path for one in source for path in _find(os.fspath(one), allow_outside)
    ]
    if not paths:
        raise FileNotFoundError("The list of TFRecord files is empty.")
    return RecordFiles(dict.fromkeys(paths), source=source)


def local_source(source: Any) -> Any:
    """Copy a source from a store to this machine, unless it is records.

    Args:
        source: string, `pathlib.Path` or list.

    Returns:
        The path of the copy. Local paths, lists and addresses of records are
        returned as they are.
    """
    if isinstance(source, (list, tuple)) or not is_store(source):
        return source
    address = os.fspath(source)
    if not is_directory(address):
        return source if is_records(address) else local_copy(source)
    names = list_directory(address)
    return source if any(map(is_records, names)) else local_copy(source)


def _find(pattern, allow_outside):
    if not is_store(pattern) and os.path.lexists(pattern):
        whole = os.path.isdir(pattern)
        paths = list_files(pattern, is_records) if whole else [pattern]
        if not paths:
            paths = shards_of_parts(pattern, _read_manifest(pattern))
    elif is_directory(pattern):
        names = filter(is_records, list_directory(pattern))
        paths = [os.path.join(pattern, n) for n in names if not is_junk(n)]
        if not paths:
            paths = shards_of_parts(pattern, _read_manifest(pattern))
    else:
        paths = find_files(pattern) or find_files(glob.escape(pattern))
    if (
        not paths
        and not glob.has_magic(str(pattern))
        and (is_store(pattern) or not os.path.lexists(pattern))
    ):
        raise FileNotFoundError(f"There is no file or folder `{pattern}`.")
    if not paths:
        raise FileNotFoundError(
            f"No TFRecord files match `{pattern}`; give a folder that holds "
            "*.tfrecord files, or a glob."
        )
    for path in paths:
        refuse_others(path)
        if os.path.islink(path) and not os.path.exists(path):
            raise FileNotFoundError(f"The link `{path}` leads nowhere.")
        check_member(pattern, path, allow_outside)
        if clean_text(path) != path:
            raise ValueError(
                "TensorFlow cannot read records from a path that is not UTF-8; "
                f"rename `{clean_text(path)}`."
            )
    return sorted(paths)


def _folder_of(path):
    folder, name = os.path.split(os.path.dirname(path))
    return folder if PART.fullmatch(name) else os.path.join(folder, name)


def _read_manifest(folder):
    manifest = _read_json(os.path.join(folder, "manifest.json"))
    return manifest if unfit_field(manifest, _MANIFEST) is None else {}


def _read_counts(folder):
    shards = _read_manifest(folder).get("shards", ())
    return {entry["file"]: entry["records"] for entry in shards}


def _count(listed, path):
    folder, name = os.path.split(path)
    count = listed(folder).get(name)
    if count is None:
        stats = _read_json(f"{records_stem(path)}_stats.json")
        count = stats.get("successes")
    if not is_count(count):
        count = len(record_offsets(path)) - 1
    return count


def _read_json(path):
    """Read a JSON object; return `{}` if it is missing or damaged."""
    try:
        contents = json.loads(read_range(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return contents if isinstance(contents, dict) else {}
