"""Stages: tables that are computed once, and survive a killed run.

A stage is a directory of Parquet files, and a JSON file that names it and is
written when all of them are. What no such file names counts for nothing, so
that nothing is renamed, which stores of objects cannot do. A stage's name holds
a hash of all that the contents depend on: another input or setting makes
another stage.
"""

import re
import secrets
import time

from align_keras.io.json_files import is_count
from align_keras.io.optional import OptionalModule

parquet = OptionalModule("pyarrow.parquet", extra="curation")

# The directory may be the user's own: nothing else there is touched.
_OURS = re.compile(r"(\w.*-[0-9a-f]{16})\.[0-9a-f]{8}")


def attempt_name(stage):
    """A new name for what may become a stage, or goes with the run."""
    return f"{stage}.{secrets.token_hex(4)}"


class Stages:
    """The stages of a run.

    Args:
        storage: `Storage` in which they lie.
        engine: see `open_engine`.
        progress: callable, told a stage's name when it begins.

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
        """Run a stage unless it is finished, and read it; see `make`."""
        return self.read(self.make(name, key, write))

    def make(self, name, key, write):
        """Run a stage unless it is finished.

        Args:
            name: string.
            key: string. A fingerprint of what the contents depend on.
            write: callable that writes Parquet files into a directory of the
                storage, given by its name, which does not exist yet.

        Returns:
            The stage's name.
        """
        stage = self.used[name] = f"{name}-{key}"
        if self.notes(stage) is None:
            self.progress(name)
            # An executor of a killed run may still write to an earlier one.
            directory = attempt_name(stage)
            begin = time.perf_counter()
            try:
                write(directory)
                self.storage.sync(directory)
            except BaseException:
                # On a full disk, whatever makes room is welcome.
                self.storage.remove(directory)
                raise
            self.finish(stage, directory, time.perf_counter() - begin)
        return stage

    def finish(self, stage, directory, seconds=None, **notes):
        """Declare a directory to be a stage, complete."""
        files = self.storage.data_files(directory)
        rows = self._count(directory, files)
        notes |= {"directory": directory, "files": files}
        notes |= {"rows": rows, "seconds": seconds}
        self.storage.write_json(f"{stage}.json", notes)

    def notes(self, stage):
        """What `finish` has written about a stage, or `None`."""
        return read_notes(self.storage, stage)

    def read(self, stage):
        """A finished stage as an Ibis table."""
        return read_stage(self.storage, self.engine, self.notes(stage))

    def discard(self):
        """Remove the stages that this run has made or read, and no others."""
        for stage in self.used.values():
            # The declaration first: what is half removed counts for nothing.
            directory = self.notes(stage)["directory"]
            self.storage.remove(f"{stage}.json")
            self.storage.remove(directory)

    def paths(self, stage):
        """Names of a finished stage's files within the storage."""
        notes = self.notes(stage)
        return [f"{notes['directory']}/{file}" for file in notes["files"]]

    def _count(self, directory, files):
        """Count rows as the engine does: a cluster opens no file here."""
        if not files:
            return 0
        table = self.engine.read(self.storage.address(directory), files)
        (found,) = self.engine.collect(table.agg(rows=table.count()))
        return found["rows"]


def read_notes(storage, stage):
    """What was written about a finished stage, or `None`.

    Raises:
        ValueError: It is damaged; the message names the file and the field.
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
    """A stage as an Ibis table, from its notes."""
    return engine.read(storage.address(notes["directory"]), notes["files"])


def _is_of(stage, directory):
    # No other directory: what a stage names is read, and removed.
    ours = isinstance(directory, str) and _OURS.fullmatch(directory)
    return directory == stage or bool(ours and ours[1] == stage)
