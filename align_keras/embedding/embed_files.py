"""Embed any number of images into Parquet files of vectors."""

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
    which is only visible once it is complete. A second call with the same
    arguments embeds only what is missing. Images that do not decode are left
    out; a warning names them, and they are counted.

    The files have the columns `key` (string), `text` (string, the first
    caption), `vector` (a list of `embedding_dim` float32 values, of unit
    length) and `thumbnail` (a JPEG file). Their metadata holds the
    fingerprint of the model.

    Args:
        source: string or `pathlib.Path`. A folder of images; or TFRecord
            files, `.tar` archives or Parquet files that hold images, given
            as a folder, a file or a glob.
        output: string or `pathlib.Path`. The directory to write.
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel.
        strategy: what `align_keras.training.make_strategy` returns, or any
            `tf.distribute.Strategy`. Each batch is split over its replicas.
            With several workers, each embeds its share of the files.
            Defaults to `None`, one device.
        batch_size: int. Images per call of the network. Defaults to `64`.
        thumbnail_size: int. The shorter side of a thumbnail in pixels, or 0
            for no thumbnails. Defaults to `256`.
        images_per_shard: int. How many images of a folder go into one Parquet
            file. Defaults to `4096`.
        max_pixels: int. Larger images are left out without being decoded.
            Defaults to 64 million.
        allow_outside: bool. Whether to read images and captions outside of
            `source` that names or links point to. Defaults to `False`: they
            are left out, named in a warning and counted.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `False`.
        run_tasks: callable that takes a list of dicts and calls `embed_task`
            for each of them in other processes, such as
            `align_keras.embedding.spark.on_spark` returns. Defaults to
            `None`: this process does the work.

    Returns:
        The dict that `manifest.json` holds: `"records"` and `"skipped"`
        (counts), `"shards"`, `"finished"` and `"arguments"`.

    Raises:
        BlockingIOError: another process is writing to `output`.
        FileNotFoundError: there are no images, or there is no model.
        FileExistsError: `output` holds Parquet files that `embed` did not
            write.
        ImportError: pyarrow is not installed.
        ValueError: `output` holds vectors made with other arguments, or
            `batch_size` is smaller than the number of replicas.

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
        task: dict. A part and its settings, as `embed` makes them.
        embedder: `Embedder`.
        advance: callable. Takes how many more images are done.

    Returns:
        A pair of ints: how many images were embedded, and how many skipped.
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
    """Embed a stream of image files, and make a thumbnail of each.

    Args:
        images: iterable of tuples of a key, a callable that reads the bytes,
            and a text.
        embedder: `Embedder`.
        skip: callable. Takes the key of an image that cannot be read, and the
            reason.
        batch_size: int. Images per call; the last batch is padded.
        thumbnail_size: int. Pixels of the shorter side, or 0 for no
            thumbnails.
        max_pixels: int. See `embed`.

    Yields:
        Tuples of a list of keys, a list of texts, float32 vectors `(count,
        dim)` of unit length, and a list of JPEG files.

    Raises:
        ValueError: the model returns NaN or infinity.
    """

    def listed():
        for key, read, text in images:
            # `read` appends the thumbnail to the last entry.
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
    """Scale an image down and encode it as JPEG.

    Args:
        pixels: uint8 array `(height, width, 3)`.
        size: int. Pixels of the shorter side, or 0 for no thumbnail. Small
            images are not enlarged, and the longer side has at most three
            times as many pixels.

    Returns:
        The bytes of a JPEG file, empty if `size` is 0.
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
