"""Images of any number to Parquet files of vectors."""

import io
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.embedding.embed_streams import embed_stream
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.embedding.parts import has_executors
from align_keras.embedding.parts import skipped_images
from align_keras.embedding.parts import work_on_parts
from align_keras.embedding.vector_files import record_batch
from align_keras.embedding.vector_files import vector_writer
from align_keras.io.atomic import atomic_file
from align_keras.io.images import decode_with_pillow
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import stored
from align_keras.io.stores import absolute

MAX_PIXELS = 64_000_000


@stored("output", but=has_executors)
def embed(
    source: str | Path,
    output: str | Path,
    model: str | Path,
    strategy: Any = None,
    batch_size: int = 64,
    thumbnail_size: int = 256,
    images_per_shard: int = 4096,
    max_pixels: int = MAX_PIXELS,
    allow_outside: bool = False,
    progress: bool = False,
    run_tasks: Callable | None = None,
) -> dict:
    """Embed images, and write keys, vectors and thumbnails to Parquet.

    Each TFRecord file, archive or part of a folder becomes one Parquet file,
    which appears whole. Run again with the same arguments, only what is
    missing is embedded. Images that do not decode are left out, named in a
    warning and counted.

    The files have the columns `key` (string), `text` (string, the first
    caption), `vector` (a list of `embedding_dim` float32, of unit length) and
    `thumbnail` (a JPEG file), and the fingerprint of the model in their
    metadata.

    Args:
        source: string or `pathlib.Path`. A folder of images; or TFRecord
            files or `.tar` archives: a folder, a file or a glob.
        output: string or `pathlib.Path`. The directory to write.
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel.
        strategy: what `align_keras.training.make_strategy` returns, or any
            `tf.distribute.Strategy`. Each batch is split over its replicas;
            of several workers, each embeds its share of the files. Defaults
            to `None`, one device.
        batch_size: int. Images in one call of the network. Defaults to `64`.
        thumbnail_size: int. The shorter side of a thumbnail in pixels; 0 for
            none. Defaults to `256`.
        images_per_shard: int. Images of a folder in one Parquet file.
            Defaults to `4096`.
        max_pixels: int. Larger images are left out before they are decoded.
            Defaults to 64 million.
        allow_outside: bool. Whether to read images and captions outside of
            `source` that names and links lead to. Defaults to `False`: they
            are left out, named and counted.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `False`.
        run_tasks: callable that takes a list of dicts, and calls `embed_task`
            for each elsewhere, such as `align_keras.embedding.spark.on_spark`
            makes it. Defaults to `None`: they run in this process.

    Returns:
        dict, that of `manifest.json`: `"records"`, `"skipped"` (counts),
        `"shards"`, `"finished"` and `"arguments"`.

    Raises:
        BlockingIOError: another process writes to `output`.
        FileNotFoundError: there are no images, or there is no model.
        FileExistsError: `output` holds Parquet files of another origin.
        ImportError: pyarrow is not installed.
        ValueError: `output` holds vectors of other arguments, or a batch has
            fewer images than there are replicas.

    Example:

    ```python
    embed("photos", "vectors", model="run/model")
    ```
    """

    def plan():
        place = local_copy(source)
        return plan_sources(place, images_per_shard, allow_outside)

    return work_on_parts(
        embed_task,
        plan,
        output,
        model,
        {
            "source": absolute(source),
            "thumbnail_size": thumbnail_size,
            "max_pixels": max_pixels,
        },
        what="vectors",
        title="Embedding images",
        strategy=strategy,
        batch_size=batch_size,
        progress=progress,
        run_tasks=run_tasks,
    )


def embed_task(
    task: dict, embedder: Embedder, advance: Callable = lambda count: None
) -> tuple[int, int]:
    """Embed one part of a source and write its Parquet file.

    Args:
        task: dict of a part and its settings, as `embed` makes them.
        embedder: `Embedder`.
        advance: callable of a number of images that are done.

    Returns:
        A pair of ints: images that were embedded, and skipped.
    """
    about = {"fingerprint": task["fingerprint"]}
    skip = skipped_images(about)
    rows = embed_images_with_thumbnails(
        read_source(task["part"], skip),
        embedder,
        skip,
        task["batch_size"],
        task["thumbnail_size"],
        task["max_pixels"],
    )
    count = 0
    with atomic_file(task["file"]) as temporary:
        dim = np.shape(embedder.texts([""]))[1]
        with vector_writer(temporary, dim, about) as writer:
            for batch in rows:
                writer.write(record_batch(writer.schema, *batch))
                count += len(batch[0])
                advance(len(batch[0]))
    return count, about["skipped"]


def embed_images_with_thumbnails(
    images: Iterable[tuple],
    embedder: Embedder,
    skip: Callable,
    batch_size: int,
    thumbnail_size: int,
    max_pixels: int,
) -> Iterator[tuple[list, list, np.ndarray, list]]:
    """Embed a stream of image files, and make them small.

    Args:
        images: iterable of tuples of a key, a callable that reads the bytes,
            and a text.
        embedder: `Embedder`.
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

    def listed():
        for key, read, text in images:
            # Its last entry will be the thumbnail.
            yield key, read, text, []

    def read(item):
        try:
            contents = item[1]()
        except OSError as error:
            raise ValueError(str(error)) from error
        pixels = decode_with_pillow(contents, max_pixels)
        item[3].append(thumbnail(pixels, thumbnail_size))
        return embedder.read(contents if embedder.decodes else pixels)

    def leave_out(item, error):
        skip(item[0], str(error))

    stream = embed_stream(embedder, listed(), leave_out, batch_size, read)
    for items, vectors in stream:
        keys, _, texts, thumbnails = map(list, zip(*items, strict=True))
        yield keys, texts, vectors, sum(thumbnails, [])


def thumbnail(pixels: np.ndarray, size: int) -> bytes:
    """Make the JPEG file of a small image.

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
