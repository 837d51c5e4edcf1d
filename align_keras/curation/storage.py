"""Where a run writes: a local directory, or one of Arrow's file systems."""

import contextlib
import json
import os
import posixpath
import shutil
from pathlib import Path

from align_keras.io.atomic import atomic_file
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.json_files import check_form
from align_keras.io.json_files import parse_json
from align_keras.io.json_files import read_object
from align_keras.io.locks import directory_lock
from align_keras.io.optional import OptionalModule
from align_keras.io.text import clean_text

fs = OptionalModule("pyarrow.fs", extra="curation")

# Inputs may lie there.
OBJECT_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "az")


class Storage:
    """A directory, by names relative to it.

    Args:
        root: string or `pathlib.Path`. A local path, or an address such as
            `hdfs://…`. What is there only as a whole is renamed, so stores
            of objects, which cannot rename directories, are refused.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        scheme = self.root.partition("://")[0].lower()
        if scheme in OBJECT_STORES:
            raise ValueError(
                "Output and stages need a file system that can rename a "
                "directory, such as hdfs:// or a local or NFS path; object "
                f"stores cannot. Received: {self.root}"
            )
        self.local = "://" not in self.root
        if clean_text(self.root) != self.root:
            raise ValueError(
                "Output and stages need a name in UTF-8, which the engines can "
                f"open. Received: {clean_text(self.root)!r}"
            )
        if self.local:
            self.root = os.path.abspath(self.root)
            self.system, self.base = fs.LocalFileSystem(), self.root
        else:
            self.system, self.base = fs.FileSystem.from_uri(self.root)

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
        # An object appears when its upload ends.
        with self.open_output(name) as file:
            file.write(contents)

    def write_json(self, name, value):
        """Write a JSON file that appears as a whole."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.write_text(name, text + "\n")

    def move(self, old, new):
        """Rename a directory that no reader knows yet."""
        if self.local:
            self._sync(old)
        self.system.move(self._path(old), self._path(new))

    def _sync(self, name):
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
        with other.open_input(old) as source, self.open_output(new) as target:
            while block := source.read(2**24):
                target.write(block)

    def lock(self):
        """Refuse a second writer; remotely, nothing can be locked."""
        if self.local:
            return directory_lock(self.root)
        return contextlib.nullcontext()
