"""Access object stores and other file systems by address.

Everything here uses fsspec: `s3://`, `gs://`, `hdfs://`, `memory://` and the
other `SCHEMES`. A small adapter adds file systems that only TensorFlow can
read, such as `ram://`.
"""

import collections
import contextlib
import functools
import glob
import hashlib
import io
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align_keras.io.optional import OptionalModule

fsspec = OptionalModule("fsspec", extra="stores")

# `Path` turns two slashes into one. A scheme of one letter is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
# Schemes that TensorFlow reads itself, without fsspec.
OF_TENSORFLOW = ("ram", "gs", "gcs")
SCHEMES = (
    *OF_TENSORFLOW,
    *("s3", "s3a", "hdfs", "webhdfs", "abfs", "abfss", "az", "adl"),
    *("oci", "oss", "tos", "sftp", "ssh", "memory"),
)
# What fsspec's file systems call something that changes with a file, the surest
# first. Their spellings differ in case and underscores.
_CHANGING = ("md5hash", "md5", "generation", "etag")
_CHANGING += ("mtime", "lastmodified", "timemodified", "modificationtime")


class StaleWriter(OSError):
    """Another process has written the file in the meantime."""


def scheme_of(path: Any) -> str | None:
    """Return the scheme of an address, or `None` for a local path."""
    found = _ADDRESS.match(os.fspath(path))
    return found[1] if found else None


def is_store(path: Any) -> bool:
    """Tell whether a path is the address of a store."""
    return scheme_of(path) in SCHEMES


class Store:
    """A directory of a store, or one file of it.

    Args:
        address: string, such as `"s3://bucket/run"`.

    Attributes:
        address: string, without a trailing slash.

    Raises:
        ImportError: The package for its scheme is not installed.
        ValueError: The address has no scheme or an unknown one.

    Example:

    ```python
    store = Store("s3://bucket/run")
    store.put("local.json", "manifest.json")
    print(store.sizes())
    ```
    """

    def __init__(self, address: str | Path):
        found = _ADDRESS.match(os.fspath(address))
        if found is None or not is_store(address):
            raise ValueError(
                f"`{address}` is not the address of a store. It must begin "
                f"with one of {', '.join(f'{s}://' for s in SCHEMES)}."
            )
        rest = os.fspath(address)[found.end() :].rstrip("/")
        self.address = f"{found[1]}://{rest}"
        self.files, root = _open(self.address)
        self.root = root.rstrip("/")

    def __str__(self):
        return self.address

    def address_of(self, path: str) -> str:
        """Return the address of a `path` of the file system."""
        host = self.address[: -len(self.root.lstrip("/")) or None]
        return f"{host}{path.lstrip('/')}"

    def _path(self, name):
        return f"{self.root}/{name}" if name else self.root

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in the directory, by name."""
        return {name: entry["size"] for name, entry in self.entries().items()}

    def entries(self) -> dict[str, dict]:
        """Return what fsspec tells of each file in the directory, by name."""
        try:
            found = self.files.find(self.root, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(self.root).lstrip("/"): entry
            for path, entry in found.items()
            if path != self.root and entry["type"] == "file"
        }

    def matches(self) -> dict[str, dict]:
        """Return what fsspec tells of each file that this glob matches.

        Returns:
            dict by address, sorted.
        """
        found = self.files.glob(self.root, detail=True)
        return {
            self.address_of(path): entry
            for path, entry in sorted(found.items())
            if entry["type"] != "directory"
        }

    def is_file(self, name: str = "") -> bool:
        """Tell whether a file exists."""
        self.files.invalidate_cache()
        return self.files.isfile(self._path(name))

    def size(self, name: str = "") -> int:
        """Return the size of a file in bytes."""
        return self.files.size(self._path(name))

    def tag(self, name: str) -> Any:
        """Return a tag for conditional writes; see `read_with_tag`."""
        return self.files.tag(self._path(name))

    def version(self, name: str, entry: dict) -> Any:
        """Return a value that changes when a file changes.

        The file is read only if the store tells neither a checksum nor a time.

        Args:
            name: string.
            entry: dict. What `entries` or `matches` tells of the file.
        """
        change = _change_of(entry)
        return [entry["size"], change] if change else self.tag(name)

    def read(
        self, name: str = "", start: int = 0, end: int | None = None
    ) -> bytes:
        """Return the contents of a file, or the bytes between two positions.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        try:
            return self.files.cat_file(self._path(name), start=start, end=end)
        except FileNotFoundError:
            where = f"{self.address}/{name}" if name else self.address
            raise FileNotFoundError(f"There is no `{where}`.") from None

    def get(self, name: str, path: str | Path) -> None:
        """Copy a file of the store to a local path."""
        self.files.get_file(self._path(name), str(path))

    def put(self, path: str | Path, name: str) -> None:
        """Copy a local file to the store, replacing any existing file."""
        self.files.put_file(str(path), self._path(name))

    def copy(self, name: str, to: str) -> None:
        """Copy a file within the store."""
        self.files.cp_file(self._path(name), self._path(to))

    def remove(self, *names: str) -> None:
        """Remove files; ignore those that do not exist."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(self._path(name))

    def read_with_tag(self, name: str) -> tuple[bytes | None, Any]:
        """Read a file and its tag, which shows whether it has changed since.

        Returns:
            A pair of contents and tag, or `(None, None)` if the file does not
            exist.

        Raises:
            StaleWriter: The file keeps changing while it is read.
        """
        self.files.invalidate_cache()
        path = self._path(name)
        for _ in range(4):
            try:
                tag = self.files.tag(path)
                contents = self.files.cat_file(path)
                if self.files.tag(path) == tag:
                    return contents, tag
            except FileNotFoundError:
                return None, None
        raise StaleWriter(
            f"`{self.address}/{name}` keeps changing while it is read."
        )

    def replace(self, name: str, contents: bytes, tag: Any) -> Any:
        """Write a file, unless another process changed it since it was read.

        Args:
            name: string.
            contents: bytes.
            tag: the tag from `read_with_tag`; `None` for a file that must not
                exist yet.

        Returns:
            The tag of the new contents.

        Raises:
            StaleWriter: The file has changed. It is left as it is.
        """
        try:
            return self.files.put_if(self._path(name), contents, tag)
        except FileExistsError:
            held, tag = self.read_with_tag(name)
            if held == contents:
                # The answer was lost, and the file system has asked again.
                return tag
            raise StaleWriter(
                f"Another process has written `{self.address}/{name}` in the "
                "meantime. That file was left as it is."
            ) from None


def _change_of(entry):
    """Return the checksum, tag or time in an entry of fsspec, or `None`."""
    told = {key.lower().replace("_", ""): v for key, v in entry.items()}
    found = (told.get(key) for key in _CHANGING)
    return next((str(value) for value in found if value), None)


def _open(address):
    """Open the file system of an address, with conditional writes.

    Returns:
        The file system, and the path of the address in it.
    """
    scheme = scheme_of(address)
    if scheme == "ram" or (scheme in OF_TENSORFLOW and not _has_gcsfs()):
        files = _of_tensorflow(scheme)
        return files, files._strip_protocol(address)
    try:
        # Without a cache, files of other writers are seen at once.
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise ImportError(
            f"`{scheme}://` needs another package: {error}. Those for s3:// "
            'and gs:// come with pip install "align-keras[stores]".'
        ) from error
    if not hasattr(files, "put_if"):
        is_s3 = type(files).__name__ == "S3FileSystem"
        files.put_if, files.tag = (_s3 if is_s3 else _one_process)(files)
    return files, root


def _has_gcsfs():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        return False
    return True


def _s3(files):
    """Make conditional writes for S3, which compare the ETag."""

    def tag(path):
        return files.info(path, refresh=True)["ETag"].strip('"')

    def put_if(path, contents, expected):
        bucket, key, _ = files.split_path(path)
        condition = (
            {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        )
        try:
            answer = files.call_s3(
                "put_object", Bucket=bucket, Key=key, Body=contents, **condition
            )
        except FileNotFoundError:
            # S3 reports this if the object to be replaced no longer exists.
            raise FileExistsError(path) from None
        except OSError as error:
            if _says_changed(error):
                raise FileExistsError(path) from None
            raise
        return answer["ETag"].strip('"')

    return put_if, tag


def _says_changed(error):
    """Whether a store has refused a write because of its condition."""
    response = getattr(error.__cause__, "response", {})
    code = response.get("Error", {}).get("Code")
    # The second code means that another conditional write was in progress.
    return code in ("PreconditionFailed", "ConditionalRequestConflict")


_within_process = threading.Lock()


def _one_process(files):
    """Emulate conditional writes on file systems without them.

    Threads of a process exclude each other. Another process could still write
    between the check and the write.
    """

    def tag(path):
        return hashlib.sha256(files.cat_file(path)).hexdigest()

    def put_if(path, contents, expected):
        with _within_process:
            try:
                held = tag(path)
            except FileNotFoundError:
                held = None
            if held != expected:
                raise FileExistsError(path)
            files.pipe_file(path, contents)
            return hashlib.sha256(contents).hexdigest()

    return put_if, tag


@functools.cache
def _of_tensorflow(scheme):
    """Make an fsspec file system for one of TensorFlow's schemes."""

    class TensorFlowFiles(fsspec.AbstractFileSystem):
        protocol = scheme
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            found = _ADDRESS.match(path)
            return path[found.end() :] if found else path

        def _address(self, path):
            return f"{scheme}://{self._strip_protocol(path)}"

        def info(self, path, **kwargs):
            import tensorflow as tf

            with _as_os_errors():
                found = tf.io.gfile.stat(self._address(path))
            kind = "directory" if found.is_directory else "file"
            name = self._strip_protocol(path)
            return {
                "name": name,
                "size": found.length,
                "type": kind,
                # 0 if the file system keeps none.
                "mtime": found.mtime_nsec,
            }

        def ls(self, path, detail=True, **kwargs):
            import tensorflow as tf

            path = self._strip_protocol(path).rstrip("/")
            with _as_os_errors():
                names = tf.io.gfile.listdir(self._address(path))
            entries = [self.info(f"{path}/{n.rstrip('/')}") for n in names]
            return entries if detail else [e["name"] for e in entries]

        def _open(self, path, mode="rb", **kwargs):
            import tensorflow as tf

            address = self._address(path)
            if "r" not in mode:
                self._make_room(address)
            elif not tf.io.gfile.exists(address):
                raise FileNotFoundError(address)
            return _TensorFlowFile(tf.io.gfile.GFile(address, mode))

        def _make_room(self, address):
            import tensorflow as tf

            tf.io.gfile.makedirs(address.rpartition("/")[0])
            # In `ram://`, writing and copying append to an existing file.
            if scheme == "ram" and tf.io.gfile.exists(address):
                tf.io.gfile.remove(address)

        def cat_file(self, path, start=None, end=None, **kwargs):
            with self._open(path) as file:
                start = start or 0
                file.seek(start)
                return file.read() if end is None else file.read(end - start)

        def pipe_file(self, path, value, **kwargs):
            with self._open(path, "wb") as file:
                file.write(value)

        def makedirs(self, path, exist_ok=False):
            import tensorflow as tf

            with _as_os_errors():
                tf.io.gfile.makedirs(self._address(path))

        def mkdir(self, path, create_parents=True, **kwargs):
            self.makedirs(path)

        def cp_file(self, path1, path2, **kwargs):
            import tensorflow as tf

            source, target = self._address(path1), self._address(path2)
            if source == target:
                return
            with _as_os_errors():
                self._make_room(target)
                tf.io.gfile.copy(source, target, overwrite=True)

        def rm_file(self, path):
            import tensorflow as tf

            with _as_os_errors():
                tf.io.gfile.remove(self._address(path))

        def rm(self, path, recursive=False, maxdepth=None):
            import tensorflow as tf

            if not (recursive and self.isdir(path)):
                self.rm_file(path)
                return
            with _as_os_errors():
                tf.io.gfile.rmtree(self._address(path))

    files = TensorFlowFiles()
    files.put_if, files.tag = _one_process(files)
    return files


class _TensorFlowFile(io.RawIOBase):
    """A TensorFlow file as a Python file object."""

    def __init__(self, file):
        super().__init__()
        self._file = file

    def readable(self):
        return "r" in self._file.mode

    def writable(self):
        return not self.readable()

    def seekable(self):
        return self.readable()

    def tell(self):
        return self._file.tell()

    def seek(self, offset, whence=os.SEEK_SET):
        with _as_os_errors():
            self._file.seek(offset, whence)
            return self._file.tell()

    def read(self, size=-1):
        with _as_os_errors():
            return self._file.read(-1 if size is None else size)

    def readall(self):
        return self.read()

    def readinto(self, buffer):
        contents = self.read(len(buffer))
        buffer[: len(contents)] = contents
        return len(contents)

    def write(self, contents):
        contents = bytes(contents)
        with _as_os_errors():
            self._file.write(contents)
        return len(contents)

    def flush(self):
        super().flush()
        if self.writable():
            with _as_os_errors():
                self._file.flush()

    def close(self):
        if not self.closed:
            super().close()
            with _as_os_errors():
                self._file.close()


@contextlib.contextmanager
def _as_os_errors():
    """Turn TensorFlow's errors into Python's file errors."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(error.message) from None
    except tf.errors.OpError as error:
        raise OSError(error.message) from None


# === Files at any path ===


def is_directory(path: str) -> bool:
    """Tell whether a local path or an address is a directory."""
    if not is_store(path):
        return os.path.isdir(path)
    store = Store(path)
    store.files.invalidate_cache()
    return store.files.isdir(store.root)


def is_file(path: str) -> bool:
    """Tell whether a local path or an address is a file."""
    return Store(path).is_file() if is_store(path) else os.path.isfile(path)


def list_directory(path: str) -> list[str]:
    """Return the names of the files in a directory, sorted."""
    if not is_store(path):
        return sorted(os.listdir(path))
    return sorted(n for n in Store(path).sizes() if "/" not in n)


def find_files(pattern: str) -> list[str]:
    """Return the sorted paths or addresses of the files a glob matches."""
    if not is_store(pattern):
        return sorted(f for f in glob.glob(pattern) if not os.path.isdir(f))
    return list(Store(pattern).matches())


def file_size(path: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return Store(path).size() if is_store(path) else os.path.getsize(path)


def file_states(addresses: Iterable[str]) -> dict[str, list]:
    """Return what shows that files have changed, by few requests.

    Args:
        addresses: iterable of strings. Files of stores.

    Returns:
        dict from each address to a list: the size and, where the file system
        tells one, a tag or time. It is empty for a file that does not exist.
    """
    states: dict[str, list] = {address: [] for address in addresses}
    folders = collections.defaultdict(list)
    for address in states:
        folders[address.rpartition("/")[0]].append(address)
    for members in folders.values():
        store = Store(members[0])
        with contextlib.suppress(FileNotFoundError):
            if len(members) == 1:
                entries = [store.files.info(store.root)]
            else:
                folder = store.root.rpartition("/")[0]
                entries = store.files.ls(folder, detail=True)
            found = {e["name"].rpartition("/")[2]: e for e in entries}
            for address in members:
                entry = found.get(address.rpartition("/")[2])
                if entry:
                    # In memory, only the time when it was made is known.
                    change = _change_of(entry) or str(entry.get("created"))
                    states[address] = [str(entry["size"]), change]
    return states


def read_range(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Read a file, or the bytes between two positions.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if is_store(path):
        return Store(path).read(start=start, end=end)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(end - start)


def open_file(address: str):
    """Open a file of a store for reading."""
    store = Store(address)
    return store.files.open(store.root, "rb")


def absolute(path: Any) -> str:
    """Return an absolute path; return an address as it is."""
    return os.fspath(path) if is_store(path) else os.path.abspath(path)
