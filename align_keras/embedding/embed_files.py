"""Pictures of any number to Parquet files of vectors."""

import hashlib
import io
import itertools
import json
import logging
import os
from pathlib import Path

import numpy as np

from align_keras.embedding.embedder import fingerprint_of
from align_keras.embedding.inputs import plan_inputs
from align_keras.embedding.inputs import read_input
from align_keras.embedding.search_model import load_search_model
from align_keras.embedding.search_model import local_replicas
from align_keras.embedding.search_model import model_path
from align_keras.io.atomic import atomic_file
from align_keras.io.threads import map_ahead
from align_keras.preprocessing.decode import decode_and_describe

VERSION = 1
# Entry of the Parquet files' metadata, in JSON.
METADATA = b"align_keras"
MAX_PIXELS = 64_000_000
# Skipped pictures that a file names; it counts all.
_MAX_LISTED = 100

logger = logging.getLogger("align_keras")


def embed(
    source,
    output,
    model,
    strategy=None,
    batch_size=64,
    thumbnail_size=256,
    pictures_per_shard=4096,
    max_pixels=MAX_PIXELS,
    progress=False,
    spark=None,
):
    """Embed pictures, and write keys, vectors and thumbnails to Parquet.

    Each TFRecord file, archive or part of a folder becomes one Parquet file,
    which appears whole. Run again with the same arguments, only what is
    missing is embedded. Pictures that do not decode are left out, named in a
    warning and counted.

    The files have the columns `key` (string), `text` (string, the first
    caption), `vector` (a list of `embedding_dim` float32, of unit length) and
    `thumbnail` (a JPEG file), and the fingerprint of the model in their
    metadata.

    Args:
        source: string or `pathlib.Path`. A folder of pictures; or TFRecord
            files or `.tar` archives: a folder, a file or a glob.
        output: string or `pathlib.Path`. The directory to write.
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel.
        strategy: what `align_keras.training.make_strategy` returns, or any
            `tf.distribute.Strategy`. Each batch is split over its replicas;
            of several workers, each embeds its share of the files. Defaults
            to `None`, one device.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        thumbnail_size: int. The shorter side of a thumbnail in pixels; 0 for
            none. Defaults to `256`.
        pictures_per_shard: int. Pictures of a folder in one Parquet file.
            Defaults to `4096`.
        max_pixels: int. Larger pictures are left out before they are decoded.
            Defaults to 64 million.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `False`.
        spark: a `pyspark.sql.SparkSession`. The files are embedded by its
            executors, which must see `source`, `output` and `model` under
            the same paths. Defaults to `None`, this process.

    Returns:
        dict, that of `manifest.json`: `"records"`, `"skipped"` (counts),
        `"shards"`, `"finished"` and `"arguments"`.

    Raises:
        FileNotFoundError: there are no pictures, or there is no model.
        FileExistsError: `output` holds vectors of other arguments.
        ImportError: pyarrow is not installed.
        ValueError: a batch has fewer pictures than there are replicas.

    Example:

    ```python
    embed("photos", "vectors", model="run/model")
    ```
    """
    require_pyarrow()
    if batch_size < local_replicas(strategy):
        raise ValueError(
            f"`batch_size` must be at least {local_replicas(strategy)}, the "
            f"number of replicas here. Received: batch_size={batch_size}"
        )
    path = model_path(model)
    output = Path(output)
    parts = plan_inputs(source, pictures_per_shard)
    arguments = {
        "source": os.path.abspath(source),
        "inputs": _digest(parts),
        "fingerprint": fingerprint_of(path),
        "thumbnail_size": thumbnail_size,
        "max_pixels": max_pixels,
    }
    _claim(output, arguments)
    tasks = [
        {
            "part": part,
            "file": str(output / shard_name(number, len(parts))),
            "model": str(path.resolve()),
            "batch_size": batch_size,
            **arguments,
        }
        for number, part in enumerate(parts)
    ]
    missing = [task for task in tasks if not Path(task["file"]).is_file()]
    if spark is not None and missing:
        from align_keras.embedding.spark import run_tasks

        run_tasks(spark, missing)
    elif missing:
        _run_here(missing, path, strategy, progress)
    return _conclude(output, tasks, arguments)


def shard_name(number, count):
    """Name the Parquet file of a part."""
    return f"vectors-{number:05d}-of-{count:05d}.parquet"


def require_pyarrow():
    """Raise an `ImportError` that names the extra unless pyarrow is there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Files of vectors are Parquet, which needs pyarrow: pip install "
            '"align-keras[search]".'
        ) from error


def _digest(parts):
    """What the inputs are, so that changed ones are noticed."""

    def state(path):
        # What is not on this machine has its name alone.
        about = path.stat() if path.is_file() else None
        return about and [about.st_size, about.st_mtime_ns]

    described = []
    for part in parts:
        path = Path(part["path"])
        paths = [path / name for name in part.get("names", [""])]
        described.append([part, [state(path) for path in paths]])
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(output, arguments):
    """Write down what the directory is for, or check that it still holds."""
    path = output / "manifest.json"
    if not path.is_file():
        if output.is_dir() and any(output.glob("*.parquet")):
            raise FileExistsError(
                f"`{output}` holds Parquet files but no manifest.json: choose "
                "another directory."
            )
        _write_json(path, {"finished": False, "arguments": arguments})
        return
    begun = json.loads(path.read_text("utf-8")).get("arguments", {})
    for name, value in arguments.items():
        if begun.get(name) != value:
            raise FileExistsError(
                f"`{output}` holds vectors with {name}={begun.get(name)!r}, "
                f"but {name}={value!r} was asked for: choose another "
                "directory or remove it."
            )


def _conclude(output, tasks, arguments):
    import pyarrow.parquet

    shards, skipped, records = [], 0, 0
    finished = True
    for task in tasks:
        path = Path(task["file"])
        if not path.is_file():
            # Another worker has not come to it yet.
            finished = False
            continue
        metadata = pyarrow.parquet.read_metadata(path)
        about = json.loads(metadata.metadata[METADATA])
        records += metadata.num_rows
        skipped += about["skipped"]
        shards.append(
            {
                "file": path.name,
                "records": metadata.num_rows,
                "skipped": about["skipped"],
            }
        )
    manifest = {
        "version": VERSION,
        "finished": finished,
        "records": records,
        "skipped": skipped,
        "arguments": arguments,
        "shards": shards,
    }
    if finished:
        _write_json(output / "manifest.json", manifest)
    return manifest


def _write_json(path, value):
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _run_here(tasks, path, strategy, progress):
    from rich.console import Console
    from rich.progress import Progress

    model = load_search_model(path, strategy)
    if strategy is not None:
        from align_keras.training.strategies import worker_of

        worker, workers = worker_of(strategy)
        tasks = tasks[worker::workers]
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        shards = bar.add_task("Embedding files", total=len(tasks))
        pictures = bar.add_task("Embedding pictures", total=None)
        for task in tasks:
            embed_part(task, model, lambda count: bar.advance(pictures, count))
            bar.advance(shards)


# === One part ===


def embed_part(task, model, advance=lambda count: None):
    """Embed one part of a source and write its Parquet file.

    Args:
        task: dict of a part and its settings, as `embed` makes them.
        model: a `SearchModel`.
        advance: callable of a number of pictures that are done.

    Returns:
        A pair of ints: pictures that were embedded, and skipped.
    """
    skipped = []

    def skip(key, reason):
        logger.warning("Picture %s is left out: %s", key, reason)
        skipped.append([str(key), reason])

    rows = embed_pictures(
        read_input(task["part"], skip),
        model,
        skip,
        task["batch_size"],
        task["thumbnail_size"],
        task["max_pixels"],
    )
    count = 0
    with atomic_file(task["file"]) as temporary:
        about = {"version": VERSION, "fingerprint": task["fingerprint"]}
        with VectorWriter(temporary, dimension(model), about) as writer:
            for batch in rows:
                writer.write(*batch)
                count += len(batch[0])
                advance(len(batch[0]))
            about["skipped"] = len(skipped)
            about["skipped_pictures"] = skipped[:_MAX_LISTED]
    return count, len(skipped)


def embed_pictures(
    pictures, model, skip, batch_size, thumbnail_size, max_pixels
):
    """Embed a stream of pictures, reading ahead in threads.

    Args:
        pictures: iterable of tuples of a key, a callable that reads the
            bytes, and a text.
        model: a `SearchModel`.
        skip: callable of a key and a reason.
        batch_size: int. Batches are filled up to it.
        thumbnail_size: int, pixels of the shorter side; 0 for none.
        max_pixels: int.

    Yields:
        Tuples of a list of keys, a list of texts, float32 vectors `(count,
        dim)` of unit length, and a list of JPEG files.

    Raises:
        ValueError: the model gives NaN or infinity.
    """
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}"
        )

    def prepare(picture):
        key, read, text = picture
        try:
            contents = read()
            pixels, decodable = decode_and_describe(contents, max_pixels)
            direct = model.takes_files and decodable
            prepared = model.embedder.read(contents if direct else pixels)
            return key, text, prepared, thumbnail(pixels, thumbnail_size)
        except (OSError, ValueError) as error:
            return key, error, None, None

    def readable():
        for row in map_ahead(prepare, pictures):
            if row[2] is None:
                skip(row[0], str(row[1]))
            else:
                yield row

    rows = readable()
    while batch := list(itertools.islice(rows, batch_size)):
        keys, texts, prepared, thumbnails = map(list, zip(*batch, strict=True))
        filled = prepared + prepared[:1] * (batch_size - len(batch))
        vectors = unit_rows(model.embedder.images(filled))[: len(batch)]
        if not np.isfinite(vectors).all():
            bad = keys[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(
                f"The model gives NaN or infinity for the picture `{bad}`: "
                "check its weights."
            )
        yield keys, texts, vectors, thumbnails


def unit_rows(vectors):
    """Return float32 rows, scaled to unit length."""
    vectors = np.asarray(vectors, "float32")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def dimension(model):
    """Find out the length of a model's vectors."""
    return np.shape(model.embedder.texts([""]))[1]


def thumbnail(pixels, size):
    """Make the JPEG file of a small picture.

    Args:
        pixels: uint8 array `(height, width, 3)`.
        size: int. Pixels of the shorter side, which is not enlarged; the
            longer one has at most three times as many. 0 for none.

    Returns:
        bytes, empty where `size` is 0.
    """
    if not size:
        return b""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = min(1.0, size / min(image.size), 3 * size / max(image.size))
    if scale < 1:
        shape = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(shape, Image.Resampling.LANCZOS, reducing_gap=2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()


class VectorWriter:
    """Writes a Parquet file of vectors, one row group after the other.

    Args:
        path: string or `pathlib.Path`.
        dim: int.
        about: dict. Goes into the file's metadata when it is closed.
    """

    # Rows of one group: 10 MiB of vectors of 640 values.
    GROUP = 4096

    def __init__(self, path, dim, about):
        import pyarrow as pa
        import pyarrow.parquet

        self.about = about
        self._schema = schema(dim)
        self._pending = []
        self._writer = pa.parquet.ParquetWriter(
            path,
            self._schema,
            compression={
                "key": "zstd",
                "text": "zstd",
                "vector.list.element": "none",
                "thumbnail": "none",
            },
            use_dictionary=False,
            write_statistics=False,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._flush()
            about = json.dumps(self.about).encode()
            self._writer.add_key_value_metadata({METADATA: about})
        self._writer.close()

    def write(self, keys, texts, vectors, thumbnails):
        """Add rows."""
        self._pending.append(
            record_batch(self._schema, keys, texts, vectors, thumbnails)
        )
        if sum(len(batch) for batch in self._pending) >= self.GROUP:
            self._flush()

    def _flush(self):
        import pyarrow as pa

        if self._pending:
            table = pa.Table.from_batches(self._pending)
            self._writer.write_table(table, row_group_size=len(table))
            self._pending = []


def schema(dim):
    """Give the Arrow schema of files of vectors."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("text", pa.string()),
            ("vector", pa.list_(pa.float32(), dim)),
            ("thumbnail", pa.binary()),
        ]
    )


def record_batch(schema, keys, texts, vectors, thumbnails):
    """Make an Arrow record batch of rows."""
    import pyarrow as pa

    dim = schema.field("vector").type.list_size
    values = pa.array(np.ascontiguousarray(vectors, "float32").reshape(-1))
    return pa.record_batch(
        [
            # Names on disk may hold bytes that are no text.
            pa.array([_text(key) for key in keys], pa.string()),
            pa.array([_text(text) for text in texts], pa.string()),
            pa.FixedSizeListArray.from_arrays(values, dim),
            pa.array(thumbnails, pa.binary()),
        ],
        schema=schema,
    )


def _text(value):
    return value.encode("utf-8", "replace").decode("utf-8")
