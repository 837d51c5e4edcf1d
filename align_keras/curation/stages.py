"""Stages: tables that are computed once, and survive a killed run.

A stage is a directory of Parquet files, and a JSON file of the same name
beside it that is written when all of them are. Without that file the directory
counts for nothing and is made anew. The name holds a hash of all that the
contents depend on, so that another input or setting makes another stage.
"""

import re
import secrets
import time

from align_keras.io.json_files import is_count
from align_keras.io.optional import OptionalModule

parquet = OptionalModule("pyarrow.parquet", extra="curation")

# The directory may be the user's own: nothing else there is touched.
_OURS = re.compile(r"\w.*-[0-9a-f]{16}\.[0-9a-f]{8}\.unfinished")


def unfinished_name(stage):
    """A new name for what becomes a stage, or goes with the run."""
    return f"{stage}.{secrets.token_hex(4)}.unfinished"


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
            if _OURS.fullmatch(name):
                storage.remove(name)

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
        """Run a stage unless it is finished, and read it.

        Args:
            name: string.
            key: string. A fingerprint of what the contents depend on.
            write: callable that writes Parquet files into a directory of the
                storage, given by its name, which does not exist yet.

        Returns:
            Ibis table.
        """
        stage = self.used[name] = f"{name}-{key}"
        if self.notes(stage) is None:
            self.progress(name)
            # What a killed run may have left.
            self.storage.remove(stage)
            unfinished = unfinished_name(stage)
            begin = time.perf_counter()
            try:
                write(unfinished)
                self.storage.move(unfinished, stage)
            except BaseException:
                # On a full disk, whatever makes room is welcome.
                self.storage.remove(unfinished)
                raise
            self.finish(stage, time.perf_counter() - begin)
        return self.read(stage)

    def finish(self, stage, seconds=None, **notes):
        """Declare a stage's directory complete."""
        files = self.storage.data_files(stage)
        rows = sum(self._rows(f"{stage}/{file}") for file in files)
        notes |= {"files": files, "rows": rows, "seconds": seconds}
        self.storage.write_json(f"{stage}.json", notes)

    def notes(self, stage):
        """What `finish` has written about a stage, or `None`."""
        return read_notes(self.storage, stage)

    def read(self, stage):
        """A finished stage as an Ibis table."""
        files = self.notes(stage)["files"]
        return self.engine.read(self.storage.address(stage), files)

    def discard(self):
        """Remove the stages that this run has made or read, and no others."""
        for stage in self.used.values():
            # The declaration first: what is half removed counts for nothing.
            self.storage.remove(f"{stage}.json")
            self.storage.remove(stage)

    def values(self, stage, columns):
        """Yield the rows of a finished stage as tuples of some columns."""
        for file in self.notes(stage)["files"]:
            with self.storage.open_input(f"{stage}/{file}") as source:
                reader = parquet.ParquetFile(source)
                for batch in reader.iter_batches(columns=list(columns)):
                    lists = (batch[name].to_pylist() for name in columns)
                    yield from zip(*lists, strict=True)

    def _rows(self, name):
        with self.storage.open_input(name) as file:
            return parquet.read_metadata(file).num_rows


def read_notes(storage, stage):
    """What was written about a finished stage, or `None`.

    Raises:
        ValueError: It is damaged; the message names the file and the field.
    """
    return storage.read_object(
        f"{stage}.json",
        {"files": [str], "rows": is_count, "ingest?": dict},
        "note of a stage",
        "Remove it, and run `align-keras curate` again.",
    )
