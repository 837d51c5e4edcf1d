"""Score how well captions fit their images, into Parquet files."""

import itertools
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.curation.scores import pair_key
from align_keras.curation.scores import scores_schema
from align_keras.data.captions import holds_images
from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_streams import embed_stream
from align_keras.embedding.embed_streams import encode_batches
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_pairs
from align_keras.embedding.parts import has_executors
from align_keras.embedding.parts import skipped_images
from align_keras.embedding.parts import work_on_parts
from align_keras.embedding.similarity import exact_scores
from align_keras.embedding.vector_files import RowWriter
from align_keras.embedding.vector_files import string_array
from align_keras.io.atomic import atomic_file
from align_keras.io.images import decode_with_pillow
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import stored
from align_keras.io.optional import OptionalModule
from align_keras.io.rows import ROW_READERS
from align_keras.io.stores import absolute
from align_keras.io.text import clean_text

pyarrow = OptionalModule("pyarrow", extra="search")

# Pairs in a block; only pairs of the same block are compared.
BLOCK = 4096


@stored("output", but=has_executors)
def score(
    source: str | Path,
    output: str | Path,
    model: str | Path,
    captions: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    block_size: int = BLOCK,
    strategy: Any = None,
    batch_size: int = 64,
    images_per_shard: int = 4096,
    max_pixels: int = MAX_PIXELS,
    allow_outside: bool = False,
    progress: bool = False,
    run_tasks: Callable | None = None,
) -> dict:
    """Score how well captions fit their images, and write Parquet files.

    The score of a pair is the cosine of its image and its caption. Next to it
    stand the nearest caption and the nearest image of other pairs, with their
    cosines: an image or a caption that is often the nearest one is a hub. A
    pair is compared with the pairs of its block, `block_size` consecutive
    pairs of one file of the source. The last block of a file is filled up
    with the pairs before it. Pairs with the same image or the same caption
    are not compared with each other.

    Each TFRecord file, archive, table or part of a folder becomes one Parquet
    file, which is only visible once it is complete. A second call with the
    same arguments scores only what is missing. Pairs whose image does not
    decode, and images without a caption, are left out; a warning names them,
    and they are counted.

    The files have the columns `key` (string, the image's name), `text`
    (string, the caption), `pair_key` (int64, by which `curate` finds the row),
    `score` (float32), `nearest_text` and `nearest_image` (strings),
    `nearest_text_score` and `nearest_image_score` (float32), and `compared`
    (int32, the number of pairs that the pair was compared with; if it is 0,
    the nearest ones are null).

    Args:
        source: string or `pathlib.Path`. TFRecord files, `.tar` archives of a
            WebDataset, or Parquet files that hold images, given as a folder,
            a file or a glob. Or a folder of images with captions. Or a table
            (Parquet, CSV, TSV, JSONL) that lists images in its own folder.
        output: string or `pathlib.Path`. The directory to write.
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel.
        captions: string or `pathlib.Path`. A table that lists images of the
            folder `source`, or a directory that
            `align_keras.curation.curate` wrote. Defaults to the table in
            `source` that is called `captions`.
        image_column: string. The column of a table that holds the images.
            Defaults to the first of the usual names.
        caption_column: string. The column of a table that holds the captions.
            Defaults to the first of the usual names.
        block_size: int. Pairs in a block; only pairs of the same block are
            compared. Defaults to `4096`.
        strategy: see `align_keras.embedding.embed`.
        batch_size: int. Images or captions per call of the network. Defaults
            to `64`.
        images_per_shard: int. How many images of a folder go into one Parquet
            file. Defaults to `4096`.
        max_pixels: int. Larger images are left out without being decoded.
            Defaults to 64 million.
        allow_outside: bool. Whether to read files outside of `source` that
            names or links point to. Defaults to `False`: they are left out,
            named in a warning and counted.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `False`.
        run_tasks: callable. What
            `align_keras.embedding.spark.on_spark(session, score_task)`
            returns. Defaults to `None`: this process does the work.

    Returns:
        The dict that `manifest.json` holds: `"records"` (pairs with a score),
        `"skipped"` (pairs, images without a caption, and damaged files that
        were left out), `"shards"`, `"finished"` and `"arguments"`.

    Raises:
        BlockingIOError: another process is writing to `output`.
        FileNotFoundError: there are no images, or there is no model.
        FileExistsError: `output` holds Parquet files that `score` did not
            write.
        ImportError: pyarrow is not installed.
        ValueError: `output` holds scores made with other arguments,
            `block_size` is below 2, or a column is named but there is no
            table.

    Example:

    ```python
    score("packed", "scores", model="run/model")
    curate(["pairs.parquet"], "clean", "rules.yaml", scores=["scores"])
    ```
    """
    if block_size < 2:
        raise ValueError(
            "`block_size` must be at least 2, so that there is another pair. "
            f"Received: block_size={block_size}"
        )
    columns = {"image_column": image_column, "caption_column": caption_column}
    columns = {name: value for name, value in columns.items() if value}

    def plan():
        place, table = local_copy(source), captions and local_copy(captions)
        if table is None and _lists_images(place, image_column):
            place, table = Path(place).parent, place
        return plan_sources(
            place, images_per_shard, allow_outside, table, columns, True
        )

    return work_on_parts(
        score_task,
        plan,
        output,
        model,
        {
            "source": absolute(source),
            "captions": captions and absolute(captions),
            **columns,
            "block_size": block_size,
            "max_pixels": max_pixels,
        },
        what="scores",
        title="Scoring pairs",
        strategy=strategy,
        batch_size=batch_size,
        progress=progress,
        run_tasks=run_tasks,
    )


def _lists_images(source, image_column):
    """Return whether a source is a table that lists images in its folder."""
    is_table = Path(source).suffix.lower() in ROW_READERS
    is_table = is_table and os.path.isfile(source)
    return is_table and not holds_images(source, image_column)


def score_task(
    task: dict, embedder: Embedder, advance: Callable = lambda count: None
) -> tuple[int, int]:
    """Score one part of a source and write its Parquet file.

    Args:
        task: dict. A part and its settings, as `score` makes them.
        embedder: `Embedder`.
        advance: callable. Takes how many more pairs are done.

    Returns:
        A pair of ints: how many pairs were scored, and how many skipped.
    """
    about = {name: task[name] for name in ("fingerprint", "block_size")}
    skip = skipped_images(about)
    pairs = _embedded_pairs(task, embedder, skip)

    def encode(texts):
        named = zip(texts, texts, strict=True)
        batches = encode_batches(embedder.texts, named, task["batch_size"])
        return np.concatenate([vectors for _, vectors in batches])

    count = 0
    with atomic_file(task["file"]) as temporary:
        with RowWriter(temporary, scores_schema(), about) as writer:
            blocks = score_blocks(pairs, encode, task["block_size"])
            for batch in blocks:
                writer.write(batch)
                count += len(batch)
                advance(len(batch))
    return count, about["skipped"]


def _embedded_pairs(task, embedder, skip):
    """Yield the key, the caption and the image's vector of each pair."""

    def captioned():
        for key, read, texts in read_pairs(task["part"], skip):
            if texts:
                yield key, read, texts
            else:
                skip(key, "no caption")

    def read(item):
        try:
            contents = item[1]()
        except OSError as error:
            raise ValueError(str(error)) from error
        pixels = decode_with_pillow(contents, task["max_pixels"])
        return embedder.read(contents if embedder.decodes else pixels)

    def leave_out(item, error):
        skip(item[0], str(error), len(item[2]))

    stream = embed_stream(
        embedder, captioned(), leave_out, task["batch_size"], read
    )
    for items, vectors in stream:
        for (key, _, texts), vector in zip(items, vectors, strict=True):
            for text in texts:
                yield key, clean_text(text), vector


def score_blocks(
    pairs: Iterable[tuple], encode: Callable, block_size: int
) -> Iterator[Any]:
    """Score a stream of pairs, block by block.

    Args:
        pairs: iterable of tuples of a key, a caption, and the image's vector,
            float32 `(dim,)` of unit length.
        encode: callable from a list of distinct captions to their vectors,
            float32 `(count, dim)` of unit length.
        block_size: int. If the last block has fewer pairs, they are also
            compared with the pairs before them, which are not yielded again.

    Yields:
        Arrow record batches of `scores_schema()`, in the order of the pairs.
    """
    pairs = iter(pairs)
    before: list = []
    while block := list(itertools.islice(pairs, block_size)):
        different = list(dict.fromkeys(text for _, text, _ in block))
        vectors = dict(zip(different, encode(different), strict=True))
        block = [(*pair, vectors[pair[1]]) for pair in block]
        context = before[len(block) :]
        yield _score_block(context + block)[len(context) :]
        before = block


def _score_block(block):
    keys, texts, images, captions = zip(*block, strict=True)
    scores = exact_scores(np.stack(images), np.stack(captions))
    own = scores.diagonal().copy()
    same = _equal(keys) | _equal(texts)
    compared = (~same).sum(1)
    alone = compared == 0
    scores[same] = -np.inf
    # `argmax` returns the first of equal scores.
    text, image = scores.argmax(1), scores.argmax(0)
    row = np.arange(len(block))
    columns = {
        "key": string_array(keys),
        "text": string_array(texts),
        "pair_key": pyarrow.array(map(pair_key, keys, texts), pyarrow.int64()),
        "score": pyarrow.array(own),
        "nearest_text": _unless(alone, [texts[n] for n in text]),
        "nearest_text_score": pyarrow.array(scores[row, text], mask=alone),
        "nearest_image": _unless(alone, [keys[n] for n in image]),
        "nearest_image_score": pyarrow.array(scores[image, row], mask=alone),
        "compared": pyarrow.array(compared, pyarrow.int32()),
    }
    schema = scores_schema()
    return pyarrow.record_batch(
        [columns[field.name] for field in schema], schema=schema
    )


def _equal(values):
    """Compare each value with all others: bool `(count, count)`."""
    _, codes = np.unique(np.array(values, object), return_inverse=True)
    return codes[:, None] == codes


def _unless(alone, values):
    pairs = zip(alone, values, strict=True)
    return string_array([None if lone else value for lone, value in pairs])
