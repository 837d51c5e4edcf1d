"""Where a run writes: a local directory, one of HDFS, or one of a store."""

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

# File systems that rename a directory at once. Stores of objects do not.
HADOOP = ("hdfs", "viewfs")


class Storage:
    """A directory, by names relative to it.

    Args:
        root: string or `pathlib.Path`. A local path, or an address such as
            `hdfs://…` or `s3a://…`.

    Attributes:
        local: bool. Whether it is a path of this machine.
        renames: bool. Whether a directory appears at once under a new name.

    Raises:
        ValueError: It is the address of no file system that is known.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        self.local = "://" not in self.root
        self.store = self.lease = None
        if clean_text(self.root) != self.root:
            raise ValueError(
                "Output and stages need a name in UTF-8, which the engines can "
                f"open. Received: {clean_text(self.root)!r}"
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
        """What an engine is told: a path, or an address."""
        return posixpath.join(self.root, name) if name else self.root

    def _path(self, name):
        return posixpath.join(self.base, name) if name else self.base

    def exists(self, name=""):
        """Whether there is a file or directory of that name."""
        info = self.system.get_file_info(self._path(name))
        return info.type != fs.FileType.NotFound

    def list(self, name=""):
        """Names of what a directory holds, sorted; empty without one."""
        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        found = self.system.get_file_info(selector)
        return sorted(info.base_name for info in found)

    def data_files(self, name):
        """Names of a directory's data files; engines leave others too."""
        return [f for f in self.list(name) if f[0] not in "._"]

    def size(self, name):
        """Bytes of a file."""
        return self.system.get_file_info(self._path(name)).size

    def make_directory(self, name=""):
        """Make a directory with its parents."""
        self.system.create_dir(self._path(name), recursive=True)

    def open_output(self, name):
        """Open a file to be written, in bytes."""
        return self.system.open_output_stream(self._path(name))

    @contextlib.contextmanager
    def whole_file(self, name):
        """Open a file to be written, which appears when the block ends.

        It is a local one, so that what fails in the block is not the network.
        """
        directory, base = posixpath.split(name)
        # Another attempt may be writing the same.
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
        """Open a file to be read, in bytes."""
        return self.system.open_input_file(self._path(name))

    def read_object(self, name, form, what, remedy):
        """A JSON object of a certain form, or `None` where there is none.

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
                f"`{address}` is no {what}, or damaged: {error}. {remedy}"
            ) from None
        check_form(value, form, address, what, remedy)
        return value

    def write_text(self, name, text):
        """Write a file that appears as a whole."""
        # An input's name may hold bytes that are not text.
        contents = text.encode("utf-8", "backslashreplace")
        if self.local:
            with atomic_file(self._path(name)) as temporary:
                temporary.write_bytes(contents)
            return
        if self.lease:
            self.lease.check()
        # An object appears when its upload ends.
        with self.open_output(name) as file:
            file.write(contents)

    def write_json(self, name, value):
        """Write a JSON file that appears as a whole."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.write_text(name, text + "\n")

    def move(self, old, new):
        """Rename a file, or where there are any, a directory."""
        self.sync(old)
        self.system.move(self._path(old), self._path(new))

    def sync(self, name):
        """See to it that a local file or directory survives a power cut."""
        if not self.local:
            return
        path = Path(self._path(name))
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def remove(self, name):
        """Remove a file or directory, if it is there."""
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
        """Take over a file of another `Storage`, by a link where possible."""
        if self.local and other.local:
            with contextlib.suppress(OSError):
                os.link(other._path(old), self._path(new))
                return
        if not self.renames and self.system == other.system:
            # Within the store, whatever the size.
            self.system.copy_file(other._path(old), self._path(new))
            return
        with other.open_input(old) as source, self.open_output(new) as target:
            while block := source.read(2**24):
                target.write(block)

    @contextlib.contextmanager
    def lock(self):
        """Refuse a second writer; on HDFS, nothing can be locked."""
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
