"""Embedding on Spark: the executors run a SavedModel or a preset."""

import functools
import json
import os
import sys

import numpy as np

from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_files import embed_part
from align_keras.embedding.embed_files import embed_pictures
from align_keras.embedding.embed_files import record_batch
from align_keras.embedding.embed_files import schema
from align_keras.embedding.search_model import load_search_model
from align_keras.embedding.search_model import model_path


def make_session(master, name="align-keras embed"):
    """Create or join a Spark session.

    Args:
        master: string. As Spark knows it, such as `local[2]`, `yarn` or
            `spark://host:7077`.
        name: string. How Spark's pages call it.

    Returns:
        A `pyspark.sql.SparkSession`.

    Raises:
        ImportError: pyspark is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ImportError(
            "Embedding on Spark needs pyspark and Java 17: pip install "
            '"align-keras[spark]".'
        ) from error
    builder = SparkSession.builder.master(master).appName(name)
    if master.startswith("local"):
        # Else the first python3 of the path, which may lack the packages.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return builder.getOrCreate()


def run_tasks(spark, tasks):
    """Embed parts of a source on the executors, each one a task.

    Args:
        spark: a `pyspark.sql.SparkSession`.
        tasks: list of dicts, as `embed` makes them.
    """
    rows = [(json.dumps(task),) for task in tasks]
    # One task for each part, so that a lost executor costs no more than it.
    parts = spark.sparkContext.parallelize(rows, len(rows))
    frame = spark.createDataFrame(parts, "task string")
    frame.mapInArrow(_embed_parts, "done long, skipped long").collect()


def embed_dataframe(
    frame,
    model,
    dim,
    batch_size=64,
    thumbnail_size=256,
    max_pixels=MAX_PIXELS,
):
    """Embed the pictures of a Spark DataFrame.

    Args:
        frame: a `pyspark.sql.DataFrame` with the columns `key` (string),
            `image` (binary, encoded pictures) and, if you like, `text`
            (string).
        model: string. A SavedModel or a preset directory, under a path that
            all executors see.
        dim: int. The length of the model's vectors.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        thumbnail_size: int. See `embed`. Defaults to `256`.
        max_pixels: int. See `embed`. Defaults to 64 million.

    Returns:
        A `pyspark.sql.DataFrame` with the columns `key`, `text`, `vector`
        (array of float) and `thumbnail` (binary). Pictures that do not decode
        are left out.

    Example:

    ```python
    files = spark.read.format("binaryFile").load("hdfs:///photos/*.jpg")
    files = files.selectExpr("path as key", "content as image")
    embed_dataframe(files, "/models/align", dim=640).write.parquet("vectors")
    ```
    """
    import pyarrow as pa

    path = str(model_path(model).resolve())

    def run(batches):
        loaded = _load(path)

        def pictures():
            for batch in batches:
                for row in batch.to_pylist():
                    image = row["image"] or b""
                    text = row.get("text") or ""
                    yield row["key"], lambda image=image: image, text

        rows = embed_pictures(
            pictures(), loaded, _skip, batch_size, thumbnail_size, max_pixels
        )
        for keys, texts, vectors, thumbnails in rows:
            if vectors.shape[1] != dim:
                raise ValueError(
                    f"The model gives vectors of {vectors.shape[1]} values, "
                    f"not of `dim`={dim}."
                )
            batch = record_batch(schema(dim), keys, texts, vectors, thumbnails)
            # Spark knows no lists of a fixed size.
            yield batch.cast(
                pa.schema(
                    [
                        field.with_type(pa.list_(pa.float32()))
                        if field.name == "vector"
                        else field
                        for field in batch.schema
                    ]
                )
            )

    return frame.mapInArrow(
        run, "key string, text string, vector array<float>, thumbnail binary"
    )


def _skip(key, reason):
    import logging

    logging.getLogger("align_keras").warning("%s is left out: %s", key, reason)


@functools.cache
def _load(path):
    """Load a model once in each Python worker."""
    # The workers share the machine with one another.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return load_search_model(path)


def _embed_parts(batches):
    import pyarrow as pa

    for batch in batches:
        counts = []
        for row in batch.to_pylist():
            task = json.loads(row["task"])
            counts.append(embed_part(task, _load(task["model"])))
        counts = np.array(counts, "int64").reshape(-1, 2)
        yield pa.record_batch(
            [pa.array(counts[:, 0]), pa.array(counts[:, 1])],
            names=["done", "skipped"],
        )
