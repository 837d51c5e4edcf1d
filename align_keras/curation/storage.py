"""Access the directory of a run: local, on HDFS, or in an object store."""

import contextlib
import json
import os
import posixpath
import secrets
import shutil
import tempfile
from pathlib import Path

from align_keras.io.atomic import atomic_file
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.json_files import check_form
from align_keras.io.json_files import parse_json
from align_keras.io.json_files import read_object
from align_keras.io.leases import Lease
from align_keras.io.locks import directory_lock
from align_keras.io.optional import OptionalModule
from align_keras.io.stores import Store
from align_keras.io.text import clean_text

fs = OptionalModule("pyarrow.fs", extra="curation")

# File systems that rename directories atomically. Object stores do not.
HADOOP = ("hdfs", "viewfs")


class Storage:
    """A directory whose files are addressed by names relative to it.

    Args:
        root: string or `pathlib.Path`. A local path, or an address such as
            `hdfs://…` or `s3a://…`.

    Attributes:
        local: bool. Whether the directory is on this machine.
        renames: bool. Whether directories can be renamed atomically.

    Raises:
        ValueError: The address belongs to no known file system.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        self.local = "://" not in self.root
        self.store = self.lease = None
        if clean_text(self.root) != self.root:
            raise ValueError(
                "The paths of output and stages must be UTF-8, so that the "
                f"engines can open them. Received: {clean_text(self.root)!r}"
            )
        if self.local:
            self.root = os.path.abspath(self.root)
            self.system, self.base = fs.LocalFileSystem(), self.root
        elif self.root.partition("://")[0] in HADOOP:
            self.system, self.base = fs.FileSystem.from_uri(self.root)
        else:
            self.store = Store(self.root)
            self.root, self.base = self.store.address, self.store.root
            files = fs.FSSpecHandler(self.store.files)
            self.system = fs.PyFileSystem(files)
        self.renames = self.store is None

    def address(self, name=""):
        """Return the path or address that an engine needs."""
        return posixpath.join(self.root, name) if name else self.root

    def _path(self, name):
        return posixpath.join(self.base, name) if name else self.base

    def exists(self, name=""):
        """Return whether a file or directory exists."""
        info = self.system.get_file_info(self._path(name))
        return info.type != fs.FileType.NotFound

    def list(self, name=""):
        """Return the sorted names in a directory; none if it is missing."""
        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        found = self.system.get_file_info(selector)
        return sorted(info.base_name for info in found)

    def data_files(self, name):
        """Return the names of data files, without the engines' metadata."""
        return [f for f in self.list(name) if f[0] not in "._"]

    def make_directory(self, name=""):
        """Make a directory and its parents."""
        self.system.create_dir(self._path(name), recursive=True)

    def open_output(self, name):
        """Open a binary file for writing."""
        return self.system.open_output_stream(self._path(name))

    @contextlib.contextmanager
    def whole_file(self, name):
        """Open a binary file that appears under its name when the block ends.

        The block writes to a local file, so that errors in it do not come from
        the network.
        """
        directory, base = posixpath.split(name)
        # Another attempt may be writing the same file.
        hidden = f".{base}.{secrets.token_hex(4)}.unfinished"
        hidden = posixpath.join(directory, hidden)
        try:
            if self.local:
                with self.open_output(hidden) as file:
                    yield file
            else:
                with tempfile.TemporaryFile() as file:
                    yield file
                    file.seek(0)
                    with self.open_output(hidden) as target:
                        shutil.copyfileobj(file, target, 2**24)
        except BaseException:
            self.remove(hidden)
            raise
        self.move(hidden, name)

    def open_input(self, name):
        """Open a binary file for reading."""
        return self.system.open_input_file(self._path(name))

    def read_object(self, name, form, what, remedy):
        """Read a JSON object and check its form; `None` without a file.

        See `align_keras.io.json_files.read_object`.
        """
        if not self.exists(name):
            return None
        if self.local:
            return read_object(self._path(name), form, what, remedy)
        with self.open_input(name) as file:
            text = file.read(MAX_FILE_BYTES)
        address = self.address(name)
        try:
            value = parse_json(text.decode())
        except ValueError as error:
            raise ValueError(
                f"`{address}` is not a valid {what}: {error}. {remedy}"
            ) from None
        check_form(value, form, address, what, remedy)
        return value

    def write_text(self, name, text):
        """Write a text file, which appears when it is complete."""
        # The name of an input may hold bytes that are not text.
        contents = text.encode("utf-8", "backslashreplace")
        if self.local:
            with atomic_file(self._path(name)) as temporary:
                temporary.write_bytes(contents)
            return
        if self.lease:
            self.lease.check()
        if self.renames:
            with self.whole_file(name) as file:
                file.write(contents)
                # HDFS does not rename to the name of another file.
                self.remove(name)
            return
        # An object appears when its upload is complete.
        with self.open_output(name) as file:
            file.write(contents)

    def write_json(self, name, value):
        """Write a JSON file in the same way as `write_text`."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.write_text(name, text + "\n")

    def move(self, old, new):
        """Rename a file, or a directory where `renames` is true."""
        self.sync(old)
        self.system.move(self._path(old), self._path(new))

    def sync(self, name):
        """Flush a local file, or the files of a directory, to disk."""
        if not self.local:
            return
        path = Path(self._path(name))
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def remove(self, name):
        """Remove a file or directory, if it exists."""
        path = self._path(name)
        if self.local and os.path.isdir(path):
            shutil.rmtree(path)
            return
        kind = self.system.get_file_info(path).type
        if kind == fs.FileType.Directory:
            self.system.delete_dir(path)
        elif kind == fs.FileType.File:
            self.system.delete_file(path)

    def copy(self, other, old, new):
        """Copy a file of another `Storage`, by a hard link where possible."""
        if self.local and other.local:
            with contextlib.suppress(OSError):
                os.link(other._path(old), self._path(new))
                return
        if not self.renames and self.system == other.system:
            # Copy within the store, without a download.
            self.system.copy_file(other._path(old), self._path(new))
            return
        with other.open_input(old) as source, self.open_output(new) as target:
            while block := source.read(2**24):
                target.write(block)

    @contextlib.contextmanager
    def lock(self):
        """Hold the directory against other writers; HDFS has no locks."""
        if self.local:
            with directory_lock(self.root):
                yield
        elif self.renames:
            yield
        else:
            self.lease = Lease(self.store)
            try:
                yield
            finally:
                self.lease.release()
                self.lease = None
