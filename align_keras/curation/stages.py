"""Store intermediate tables as stages, which survive a killed run.

A stage is a directory of Parquet files and a JSON note that names the
directory. The note is written when all files are complete, and a directory
without a note is ignored. So nothing needs to be renamed, which object stores
cannot do. A stage's name contains a hash of everything that its contents depend
on: another input or setting makes another stage.
"""

import re
import secrets
import time

from align_keras.io.json_files import is_count
from align_keras.io.optional import OptionalModule

parquet = OptionalModule("pyarrow.parquet", extra="curation")

# The user's directory may hold other files; only these names are removed.
_OURS = re.compile(r"(\w.*-[0-9a-f]{16})\.[0-9a-f]{8}")


def attempt_name(stage):
    """Return a new directory name for an attempt to make a stage."""
    return f"{stage}.{secrets.token_hex(4)}"


class Stages:
    """The stages of a run.

    Args:
        storage: `Storage` that holds the stages.
        engine: `DuckDBEngine` or `SparkEngine`.
        progress: callable. Called with the name of each stage that begins.

    Attributes:
        used: dict from a name to the stage that was made or read under it.
    """

    def __init__(self, storage, engine, progress=lambda name: None):
        self.storage = storage
        self.engine = engine
        self.progress = progress
        self.used = {}
        storage.make_directory()
        for name in storage.list():
            ours = _OURS.fullmatch(name)
            if ours and not self._is_used(ours[1], name):
                storage.remove(name)

    def _is_used(self, stage, directory):
        notes = self.notes(stage)
        return notes is not None and notes["directory"] == directory

    def table(self, name, key, table):
        """Store an Ibis table; see `store`."""

        def write(directory):
            self.engine.write(table, self.storage.address(directory))

        return self.store(name, key, write)

    def arrow(self, name, key, make):
        """Store an Arrow table that `make()` returns; see `store`."""

        def write(directory):
            self.storage.make_directory(directory)
            with self.storage.open_output(f"{directory}/0.stage") as file:
                parquet.write_table(make(), file)

        return self.store(name, key, write)

    def store(self, name, key, write):
        """Make a stage unless it is finished, and read it; see `make`."""
        return self.read(self.make(name, key, write))

    def make(self, name, key, write):
        """Make a stage unless it is finished.

        Args:
            name: string.
            key: string. A fingerprint of everything the contents depend on.
            write: callable. Takes the name of a directory in the storage,
                which does not exist yet, and writes Parquet files into it.

        Returns:
            string, the name of the stage.
        """
        stage = self.used[name] = f"{name}-{key}"
        if self.notes(stage) is None:
            self.progress(name)
            # Use a new directory, since an executor of a killed run may still
            # be writing to an earlier one.
            directory = attempt_name(stage)
            begin = time.perf_counter()
            try:
                write(directory)
                self.storage.sync(directory)
            except BaseException:
                # The disk may be full, so free the space.
                self.storage.remove(directory)
                raise
            self.finish(stage, directory, time.perf_counter() - begin)
        return stage

    def finish(self, stage, directory, seconds=None, **notes):
        """Write the note that makes a directory a finished stage."""
        files = self.storage.data_files(directory)
        rows = self._count(directory, files)
        notes |= {"directory": directory, "files": files}
        notes |= {"rows": rows, "seconds": seconds}
        self.storage.write_json(f"{stage}.json", notes)

    def notes(self, stage):
        """Return the note that `finish` wrote about a stage, or `None`."""
        return read_notes(self.storage, stage)

    def read(self, stage):
        """Return a finished stage as an Ibis table."""
        return read_stage(self.storage, self.engine, self.notes(stage))

    def paths(self, stage):
        """Return the names of a finished stage's files in the storage."""
        notes = self.notes(stage)
        return [f"{notes['directory']}/{file}" for file in notes["files"]]

    def _count(self, directory, files):
        """Count rows with the engine, since the files may be remote."""
        if not files:
            return 0
        table = self.engine.read(self.storage.address(directory), files)
        (found,) = self.engine.collect(table.agg(rows=table.count()))
        return found["rows"]


def discard_stages(storage, stages):
    """Remove stages, and no others; ignore those that are gone already.

    Args:
        storage: `Storage` that holds them, which this process has locked.
        stages: list of strings. The names of the stages.
    """
    for stage in stages:
        notes = read_notes(storage, stage)
        if notes is not None:
            # Remove the note first, so that a half-removed stage is ignored.
            storage.remove(f"{stage}.json")
            storage.remove(notes["directory"])


def read_notes(storage, stage):
    """Read the note of a finished stage; `None` if there is none.

    Raises:
        ValueError: The note is damaged; the message names the file and the
            field.
    """
    return storage.read_object(
        f"{stage}.json",
        {
            "directory": lambda value: _is_of(stage, value),
            "files": [str],
            "rows": is_count,
            "ingest?": dict,
        },
        "note of a stage",
        "Remove it, and run `align-keras curate` again.",
    )


def read_stage(storage, engine, notes):
    """Return a stage as an Ibis table, given its note."""
    return engine.read(storage.address(notes["directory"]), notes["files"])


def _is_of(stage, directory):
    # Refuse any other directory, since it would be read and removed.
    ours = isinstance(directory, str) and _OURS.fullmatch(directory)
    return directory == stage or bool(ours and ours[1] == stage)
