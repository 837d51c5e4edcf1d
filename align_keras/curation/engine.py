"""Run the rules on an engine: DuckDB in this process, or Spark."""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import re
import secrets
import subprocess
import sys

from align_keras.io.optional import OptionalModule
from align_keras.io.stores import Store
from align_keras.io.stores import is_store

dataset = OptionalModule("pyarrow.dataset", extra="curation")
fs = OptionalModule("pyarrow.fs", extra="curation")
ibis = OptionalModule("ibis", extra="curation")
spark_sql = OptionalModule("pyspark.sql", extra="spark")

ENGINES = ("duckdb", "spark")
# DuckDB's share of the requested memory; the rest is for Python and Arrow.
DUCKDB_SHARE = 0.75
DUCKDB_SUFFIX = "stage"

# Enough for a batch of rows in Python and Arrow, and DuckDB's minimum.
MIN_MEMORY = 256 * 2**20

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_memory(text: str) -> int:
    """Convert a size such as `"2GiB"` or `"512M"` to bytes.

    Units are powers of 1024.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.I)
    if not match:
        raise ValueError(
            f"A memory size must look like 2GiB or 512M. Received: {text!r}"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def open_engine(
    name: str = "duckdb",
    master: str | None = None,
    memory: str | None = None,
    temporary: str | None = None,
):
    """Connect to an engine.

    Args:
        name: string. `"duckdb"` or `"spark"`.
        master: string. Spark's master, such as `"local[8]"`, `"yarn"` or
            `"spark://host:7077"`. Defaults to Spark's own settings.
        memory: string. Memory limit, such as `"2GiB"`: of this process with
            DuckDB, of each executor with Spark. Defaults to the engine's own
            limit.
        temporary: string. Directory to which DuckDB spills.

    Returns:
        `DuckDBEngine` or `SparkEngine`.
    """
    if name not in ENGINES:
        raise ValueError(
            f"`engine` must be one of {', '.join(ENGINES)}. Received: {name!r}"
        )
    if master is not None and name != "spark":
        raise ValueError(
            "`master` is a setting of Spark; add `--engine spark`."
        )
    size = parse_memory(memory) if memory else None
    if size is not None and size < MIN_MEMORY:
        raise ValueError(
            "`memory` must be 256MiB or more; a number without a unit is in "
            "bytes. "
            f"Received: {memory!r}"
        )
    if name == "duckdb":
        return DuckDBEngine(size, temporary)
    return SparkEngine(master, size)


class DuckDBEngine:
    """DuckDB in this process, which spills to disk when memory is short.

    Args:
        memory: int. Memory in bytes. It also limits the processes that read
            files, at 256 MiB for each. Defaults to DuckDB's own limit, 80 %
            of the machine.
        temporary: string. Directory to which DuckDB spills.
    """

    name = "duckdb"

    def __init__(self, memory=None, temporary=None):
        self.memory = memory
        settings = {"preserve_insertion_order": False}
        if memory:
            limit = int(memory * DUCKDB_SHARE) // 2**20
            settings["memory_limit"] = f"{limit}MiB"
        if temporary:
            settings["temp_directory"] = temporary
        self.connection = ibis.duckdb.connect(":memory:", **settings)
        # When DuckDB chooses which side of a join to hold in memory, it
        # ignores how many rows UNNEST produces, and would hold all tokens
        # instead of the frequent ones: 82 instead of 55 CPU seconds for 10
        # million rows. All joins here have the small table on the right.
        self.connection.raw_sql(
            "SET disabled_optimizers='build_side_probe_side'"
        )

    def read(self, directory, files):
        """Return a table of the Parquet files of a directory."""
        if is_store(directory):
            return self._read_stored(Store(directory), files)
        paths = [os.path.join(directory, file) for file in files]
        return self.connection.read_parquet(paths)

    def _read_stored(self, store, files):
        # DuckDB reads `s3://` only with an extension that it must download.
        system = fs.PyFileSystem(fs.FSSpecHandler(store.files))
        paths = [f"{store.root}/{file}" for file in files]
        found = dataset.dataset(paths, filesystem=system, format="parquet")
        name = f"stored_{secrets.token_hex(8)}"
        self.connection.con.register(name, found)
        return self.connection.table(name)

    def write(self, table, directory):
        """Write a table as Parquet files into a new directory."""
        os.makedirs(directory)
        self.connection.to_parquet(
            table,
            directory,
            per_thread_output=True,
            file_extension=DUCKDB_SUFFIX,
        )

    def collect(self, table):
        """Return a small table as a list of dicts."""
        # Do not use Ibis here, since it would import pandas.
        found = self.connection.raw_sql(self.connection.compile(table))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def check(self, address):
        """Refuse an address to which this engine cannot write."""
        if "://" in address:
            raise ValueError(
                "DuckDB writes to local directories only; use `--engine "
                f"spark`, or another output. Received: {address}"
            )

    def map_whole(self, function, items):
        """Apply a function that uses the whole machine to items, in order."""
        return map(function, items)

    def map(self, function, items):
        """Apply a function to items in processes; yield results as they end."""
        workers = min(len(items), os.cpu_count() or 1)
        if self.memory:
            workers = min(workers, self.memory // MIN_MEMORY)
        if workers < 2:
            yield from map(function, items)
            return
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            idle = queue.SimpleQueue()
            helpers = [_Helper() for _ in range(workers)]
            for helper in helpers:
                idle.put(helper)

            def work(item):
                helper = idle.get()
                try:
                    return helper(function, item)
                finally:
                    idle.put(helper)

            try:
                waiting = [pool.submit(work, item) for item in items]
                for done in concurrent.futures.as_completed(waiting):
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)
                for helper in helpers:
                    helper.close()

    def close(self):
        """Close the connection."""
        self.connection.disconnect()


class _Helper:
    """A process that applies functions to items.

    Unlike a process of `multiprocessing`, it does not run the caller's script
    again, so that needs no `if __name__ == "__main__"`. It ends with its
    parent.
    """

    code = """
import pickle, sys, traceback
answers, sys.stdout = sys.stdout.buffer, sys.stderr
while True:
    try:
        function, item = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        answer = pickle.dumps((True, function(item)))
    except Exception as error:
        expected = str(error) if isinstance(error, OSError) else None
        reason = type(error).__name__, traceback.format_exc(), expected
        answer = pickle.dumps((False, reason))
    answers.write(answer)
    answers.flush()
"""

    def __init__(self):
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def __call__(self, function, item):
        try:
            pickle.dump((function, item), self.process.stdin)
            self.process.stdin.flush()
            good, answer = pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise OSError(
                "A process that was reading input files has ended; perhaps the "
                "machine ran out of memory."
            ) from error
        if not good:
            name, trace, expected = answer
            if expected is not None:
                raise OSError(expected)
            raise RuntimeError(
                f"{name} in a process that reads input files:\n{trace}"
            )
        return answer

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def is_local(master: str | None) -> bool:
    """Return whether the name of a Spark master means this machine."""
    return (master or "").startswith("local")


class SparkEngine:
    """Spark, on this machine or a cluster.

    Args:
        master: string. See `open_engine`.
        memory: int. Bytes for each executor, or for the driver if it is the
            only process.
    """

    name = "spark"

    def __init__(self, master=None, memory=None):
        local = is_local(master)
        if local:
            # By default, workers would take the first python3 on the path.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = spark_sql.SparkSession.builder.appName("align-keras curate")
        if master:
            builder = builder.master(master)
        if memory:
            size = f"{memory // 2**20}m"
            builder = builder.config("spark.executor.memory", size)
            if local:
                builder = builder.config("spark.driver.memory", size)
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        self.session = builder.getOrCreate()
        partitions = "spark.sql.shuffle.partitions"
        if local and self.session.conf.get(partitions) == "200":
            # Spark's default is meant for a cluster.
            count = max(8, 2 * (os.cpu_count() or 1))
            self.session.conf.set(partitions, count)
        self.session.sparkContext.setLogLevel("ERROR")
        self.connection = ibis.pyspark.connect(self.session)

    def check(self, address):
        """Refuse an address to which this engine cannot write."""
        address = self._address(address)
        context = self.session.sparkContext
        path = context._jvm.org.apache.hadoop.fs.Path(address)
        try:
            path.getFileSystem(context._jsc.hadoopConfiguration())
        except Exception as error:
            reason = str(error).strip().split("\n")[1:2] or [str(error)]
            raise ValueError(
                f"This Spark cannot write to `{address}`: {reason[0]}. Add "
                "the connector for that store, such as hadoop-aws for s3a://, "
                "and its settings, or choose another output. With `--master "
                "local[8]`, this machine copies the output there without a "
                "connector."
            ) from error

    def _address(self, address):
        """Convert an address to Hadoop's form, which uses s3a for S3."""
        scheme, separator, rest = address.partition("://")
        hadoop = self.session.sparkContext._jsc.hadoopConfiguration()
        if scheme == "s3" and hadoop.get("fs.s3.impl") is None:
            scheme = "s3a"
        return f"{scheme}{separator}{rest}"

    def read(self, directory, files):
        """Return a table of the Parquet files of a directory."""
        del files  # Spark lists a directory itself.
        return self.connection.read_parquet(self._address(directory))

    def write(self, table, directory):
        """Write a table as Parquet files into a new directory."""
        self.connection.to_parquet(table, self._address(directory))

    def collect(self, table):
        """Return a small table as a list of dicts."""
        return self.connection.to_pyarrow(table).to_pylist()

    def map(self, function, items):
        """Apply a function to items, one task each, on the cluster."""
        if items:
            context = self.session.sparkContext
            tasks = context.parallelize(items, len(items))
            yield from tasks.map(function).collect()

    def map_whole(self, function, items):
        """Do the same as `map`; Spark's settings limit each executor."""
        return self.map(function, items)

    def close(self):
        """Stop the Spark session."""
        self.session.stop()
