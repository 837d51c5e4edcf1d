"""How fast a run starts and resumes, by number and location of its files.

    python benchmarks/stores.py

Records of one size are in 1 to 10,000 files, on the local disk and in a store
that takes 20 ms for each answer. The store is simulated by fsspec's files in
memory and a pause. The script measures counting, with and without the manifest
that `pack` writes, and the first batch of a new run and of one that resumes in
epoch 3. With several workers, it measures the last worker's share. Images are
small, so that it times reading rather than decoding.
"""

import functools
import io
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import tables

RECORDS = 20_000
FILES = (1, 10, 100, 1000, 10_000)
WORKERS = (1, 8, 64)
BATCH = 256
LATENCY = 0.02
# The methods by which fsspec sends requests to a store.
REQUESTS = ("cat_file", "info", "ls", "get_file")


def write(folder, files):
    """Write records to a number of files, with indexes and a manifest."""
    import tensorflow as tf
    from PIL import Image

    from align_keras.data.records import encode_record

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "JPEG")
    listed, per_file = [], RECORDS // files
    for number in range(files):
        name = f"data-{number:05d}-of-{files:05d}"
        begin, lines = 0, []
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord")) as file:
            for place in range(per_file):
                key = f"{number}-{place}"
                captions = [f"a caption of the image {key}"]
                record = encode_record(key, image.getvalue(), captions, 64, 64)
                file.write(record)
                lines.append(f"{begin} {len(record) + 16}")
                begin += len(record) + 16
        (folder / f"{name}.idx").write_text("\n".join(lines) + "\n")
        listed.append({"file": f"{name}.tfrecord", "records": per_file})
    manifest = {"order": "random", "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def slow_store(folder):
    """Copy a folder to the slow store; return its address."""
    from fsspec.implementations.memory import MemoryFileSystem

    files = MemoryFileSystem()
    for path in folder.iterdir():
        files.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}"


def slow_down():
    """Delay each request to fsspec's files in memory by `LATENCY`."""
    from fsspec.implementations.memory import MemoryFileSystem

    within = threading.local()

    def slow(request):
        @functools.wraps(request)
        def run(*args, **kwargs):
            # A request may call others, which a real store would not receive.
            if getattr(within, "request", False):
                return request(*args, **kwargs)
            within.request = True
            try:
                time.sleep(LATENCY)
                return request(*args, **kwargs)
            finally:
                within.request = False

        return run

    for name in REQUESTS:
        setattr(MemoryFileSystem, name, slow(getattr(MemoryFileSystem, name)))


def timed(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(source, bare, preprocessor, workers):
    """Return seconds by name; for counts of workers, of the last worker."""
    from align_keras.data import load_dataset
    from align_keras.data import open_records

    def first_batch(step=0, worker=(0, 1)):
        dataset = load_dataset(
            opened(),
            preprocessor,
            BATCH,
            start_step=step,
            shard_index=worker[0],
            shard_count=worker[1],
        )
        next(iter(dataset))

    opened = functools.partial(open_records, source)
    found = {
        "counted": timed(lambda: opened().counts),
        "without": timed(lambda: open_records(bare).counts),
        "first": timed(first_batch),
        "resumed": timed(lambda: first_batch(5 * RECORDS // (2 * BATCH))),
    }
    return found | {
        count: timed(lambda c=count: first_batch(worker=(c - 1, c)))
        for count in workers
    }


def batches_per_second(source, preprocessor, batches=30):
    """Return the rate of a run once it is under way."""
    from align_keras.data import load_dataset

    batches_of = iter(load_dataset(source, preprocessor, BATCH))
    next(batches_of)
    return batches / timed(lambda: [next(batches_of) for _ in range(batches)])


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=FILES)
    args = parser.parse_args()
    from align_keras import AlignImageConverter
    from align_keras import AlignPreprocessor
    from align_keras import AlignTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "caption"]
    preprocessor = AlignPreprocessor(
        AlignTokenizer(tokens), AlignImageConverter(57, resize_size=64), 16
    )
    slow_down()
    text = (
        "| files | where | counted | without a manifest | first batch "
        "| resumed in epoch 3 | last of 8 workers | of 64 |\n"
        "|---:|---|---:|---:|---:|---:|---:|---:|\n"
    )
    rates = {}
    with tempfile.TemporaryDirectory() as root:
        for files in args.files:
            folder = Path(root, f"of-{files}")
            write(folder, files)
            bare = Path(root, f"bare-of-{files}")
            shutil.copytree(folder, bare)
            (bare / "manifest.json").unlink()
            places = {
                "disk": (str(folder), str(bare)),
                "store": (slow_store(folder), slow_store(bare)),
            }
            for where, sources in places.items():
                rounds = [
                    measure(*sources, preprocessor, WORKERS[1:])
                    for _ in range(args.rounds)
                ]
                row = {
                    k: statistics.median(r[k] for r in rounds)
                    for k in rounds[0]
                }
                cells = " | ".join(f"{value:.2f} s" for value in row.values())
                text += f"| {files:,} | {where} | {cells} |\n"
                if files == 100:
                    rates[where] = [
                        batches_per_second(sources[0], preprocessor)
                        for _ in range(args.rounds)
                    ]
            shutil.rmtree(folder)
            shutil.rmtree(bare)
    told = [
        f"{statistics.median(values):.1f} batches a second from the {where}"
        for where, values in rates.items()
    ]
    if told:
        text += (
            f"\nUnder way, with 100 files and {BATCH} pairs a batch: "
            f"{', '.join(told)}.\n"
        )
    title = f"Medians of {args.rounds} rounds, {RECORDS:,} records:"
    tables.publish(args, title, text, "stores")


if __name__ == "__main__":
    main()
