"""Embed on Spark, whose executors run a SavedModel or a preset."""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_files import embed_images_with_thumbnails
from align_keras.embedding.embed_files import embed_task
from align_keras.embedding.loading import load_embedder
from align_keras.embedding.loading import require_model
from align_keras.embedding.vector_files import record_batch
from align_keras.embedding.vector_files import schema
from align_keras.io.optional import OptionalModule

pyarrow = OptionalModule("pyarrow", extra="spark")
sql = OptionalModule("pyspark.sql", extra="spark")

logger = logging.getLogger("align_keras")


def make_session(master: str, name: str = "align-keras embed") -> Any:
    """Create or join a Spark session.

    Args:
        master: string. The address of Spark's master, such as `local[2]`,
            `yarn` or `spark://host:7077`.
        name: string. The name of the application in Spark's web interface.

    Returns:
        A `pyspark.sql.SparkSession`.

    Raises:
        ImportError: pyspark is not installed.
    """
    builder = sql.SparkSession.builder.master(master).appName(name)
    if master.startswith("local"):
        # The default, the first python3 of the path, may lack packages.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return builder.getOrCreate()


def on_spark(spark: Any, work: Callable = embed_task) -> Callable:
    """Make `embed` or `score` run on Spark, with one task per file.

    Args:
        spark: a `pyspark.sql.SparkSession`. Its executors must see source,
            output and model under the same paths as this process.
        work: callable. `embed_task` or `score_task`. Defaults to
            `embed_task`.

    Returns:
        A callable for the argument `run_tasks`.

    Example:

    ```python
    embed(photos, vectors, model, run_tasks=on_spark(spark))
    ```
    """

    def run_tasks(tasks):
        rows = [(json.dumps(task),) for task in tasks]
        # One task per part, so that a lost executor costs only that part.
        parts = spark.sparkContext.parallelize(rows, len(rows))
        frame = spark.createDataFrame(parts, "task string")
        run = functools.partial(_run_tasks, work)
        frame.mapInArrow(run, "done long, skipped long").collect()

    return run_tasks


def embed_dataframe(
    frame: Any,
    model: str | Path,
    dim: int,
    batch_size: int = 64,
    thumbnail_size: int = 256,
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """Embed the images of a Spark DataFrame.

    Args:
        frame: a `pyspark.sql.DataFrame` with the columns `key` (string),
            `image` (binary, encoded images) and optionally `text` (string).
        model: string. A SavedModel or a preset directory, under a path that
            all executors see.
        dim: int. The number of values in each of the model's vectors.
        batch_size: int. Images per call of the network. Defaults to `64`.
        thumbnail_size: int. See `embed`. Defaults to `256`.
        max_pixels: int. See `embed`. Defaults to 64 million.

    Returns:
        A `pyspark.sql.DataFrame` with the columns `key`, `text`, `vector`
        (array of float) and `thumbnail` (binary). Images that do not decode
        are left out.

    Example:

    ```python
    files = spark.read.format("binaryFile").load("hdfs:///photos/*.jpg")
    files = files.selectExpr("path as key", "content as image")
    embed_dataframe(files, "/models/align", dim=640).write.parquet("vectors")
    ```
    """
    path = str(require_model(model).resolve())

    def run(batches):
        embedder = _load(path)

        def images():
            for batch in batches:
                for row in batch.to_pylist():
                    image = row["image"] or b""
                    text = row.get("text") or ""
                    yield row["key"], lambda image=image: image, text

        rows = embed_images_with_thumbnails(
            images(), embedder, _skip, batch_size, thumbnail_size, max_pixels
        )
        for keys, texts, vectors, thumbnails in rows:
            if vectors.shape[1] != dim:
                raise ValueError(
                    f"The model gives vectors of {vectors.shape[1]} values, "
                    f"not of `dim`={dim}."
                )
            batch = record_batch(schema(dim), keys, texts, vectors, thumbnails)
            # Spark does not support lists of a fixed size.
            place = batch.schema.get_field_index("vector")
            field = batch.schema.field("vector")
            field = field.with_type(pyarrow.list_(pyarrow.float32()))
            yield batch.cast(batch.schema.set(place, field))

    return frame.mapInArrow(
        run, "key string, text string, vector array<float>, thumbnail binary"
    )


def _skip(key, reason):
    logger.warning("Image %s is left out: %s", key, reason)


@functools.cache
def _load(path):
    """Load a model once in each Python worker."""
    # Otherwise every worker logs the start-up messages of TensorFlow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return load_embedder(path)


def _run_tasks(work, batches):
    for batch in batches:
        counts = []
        for row in batch.to_pylist():
            task = json.loads(row["task"])
            counts.append(work(task, _load(task["model"])))
        counts = np.array(counts, "int64").reshape(-1, 2)
        yield pyarrow.record_batch(
            [pyarrow.array(counts[:, 0]), pyarrow.array(counts[:, 1])],
            names=["done", "skipped"],
        )
