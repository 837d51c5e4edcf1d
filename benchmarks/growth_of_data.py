"""How time and memory grow with the data, with fitted exponents.

    python benchmarks/growth_of_data.py

Each job runs once for each size, in a process of its own, on generated data
that are on the disk already. Its time is that of the job without Python's
imports, and its memory the most that the process held.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import curation
import numpy as np
import tables
import turns

IMAGES = [1_000, 10_000, 100_000]
VECTORS = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
JOBS = {
    "pack": ("`pack`, small images of a folder", IMAGES),
    "start": ("the first batch of packed pairs", IMAGES),
    "embed": ("`embed`, a tower of 33 pixels", IMAGES),
    "index": ("`index`, exact, 64 values", VECTORS),
    "open": ("opening that index", VECTORS),
    "search": ("64 queries to it", VECTORS),
    "curate": ("`curate`, rules", [10_000, 100_000, 1_000_000, 10_000_000]),
}
DIM = 64


def prepare(size, folder):
    """Write what the jobs of one size read."""
    from align_keras import AlignDualEncoder
    from align_keras import AlignImageConverter
    from align_keras import AlignPreprocessor
    from align_keras import AlignTokenizer
    from align_keras import BertTextEncoder
    from align_keras import EfficientNetBackbone

    model = AlignDualEncoder(
        EfficientNetBackbone(0.2, 0.2),
        BertTextEncoder(6, 1, 2, 32, 64),
        preprocessor=AlignPreprocessor(
            AlignTokenizer(
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo"]
            ),
            AlignImageConverter(33),
            sequence_length=8,
        ),
    )
    model.save_to_preset(folder / "model")
    if size <= max(JOBS["pack"][1]):
        _draw_photos(size, folder / "photos")
    if size in JOBS["curate"][1]:
        curation.generate(folder / "raw", size)


def _draw_photos(size, folder):
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), "uint8")
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((48, 48)).save(encoded, "JPEG")
    for number in range(size):
        (folder / f"{number}.jpg").write_bytes(encoded.getvalue())
    rows = (f"{number}.jpg,photo number {number}" for number in range(size))
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(rows))


def pack(size, folder):
    from align_keras.data import pack

    return lambda: pack(folder / "photos", folder / "packed")


def start(size, folder):
    from align_keras import AlignDualEncoder
    from align_keras.data import load_dataset

    model = AlignDualEncoder.from_preset(str(folder / "model"))

    def run():
        data = load_dataset(
            str(folder / "packed" / "*.tfrecord"),
            model.preprocessor,
            batch_size=64,
            training=True,
            seed=0,
        )
        next(iter(data))

    return run


def embed(size, folder):
    from align_keras.embedding import embed

    return lambda: embed(
        folder / "packed", folder / "embedded", folder / "model"
    )


def index(size, folder):
    from align_keras.search import write_index

    def rows():
        draw = np.random.default_rng(0)
        for begin in range(0, size, 4096):
            count = min(4096, size - begin)
            vectors = draw.standard_normal((count, DIM), "float32")
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            names = [str(number) for number in range(begin, begin + count)]
            yield names, names, vectors, [b"\xff\xd8\xff"] * count

    return lambda: write_index(
        rows(), size, folder / "index", folder / "model", "exact"
    )


def open_index(size, folder):
    from align_keras.search import Index

    return lambda: Index(folder / "index")


def search(size, folder):
    from align_keras.search import Index

    found = Index(folder / "index")
    queries = np.random.default_rng(1).standard_normal((64, DIM), "float32")
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return lambda: [found.search(query[None], 10) for query in queries]


def curate(size, folder):
    args = argparse.Namespace(
        workdir=folder, rows=size, memory="2GiB", only=None
    )
    return lambda: curation.job_ours(args)


def run_job(name, size, folder):
    """Run one job in this process and print what it took."""
    function = {"open": open_index}.get(name) or globals()[name]
    run = function(size, folder)
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(kibibytes // 2**10, seconds)


def measure(name, size, folder):
    """Run one job in a process of its own."""
    command = [sys.executable, __file__, "--job", name, "--size", str(size)]
    result = subprocess.run(
        [*command, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=turns.quiet(),
    )
    memory, seconds = result.stdout.split()[-2:]
    return float(seconds), int(memory)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--largest", type=int, help="leave out larger sizes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job == "prepare":
        prepare(args.size, args.folder)
        print("0 0")
        return
    if args.job:
        run_job(args.job, args.size, args.folder)
        return
    largest = args.largest or max(max(sizes) for _, sizes in JOBS.values())
    found = {name: {} for name in args.only}
    for size in sorted({n for name in args.only for n in JOBS[name][1]}):
        if size > largest:
            break
        with tempfile.TemporaryDirectory() as folder:
            measure("prepare", size, folder)
            for name, (_, sizes) in JOBS.items():
                # Other jobs read what these two write.
                needed = name in args.only or name in ("pack", "index")
                if size in sizes and needed:
                    result = measure(name, size, folder)
                    if name in args.only:
                        found[name][size] = result
                        print(name, size, *result, flush=True)
    text = (
        "| | rows | seconds | exponent | of the last two | MiB at most | "
        "exponent |\n|---|---|---|---:|---:|---|---:|\n"
    )
    for name, rows in found.items():
        sizes = list(rows)
        seconds, memory = zip(*rows.values(), strict=True)
        exponents = [
            turns.fitted_exponent(sizes, seconds),
            turns.fitted_exponent(sizes[-2:], seconds[-2:]),
            turns.fitted_exponent(sizes, memory),
        ]
        whole, last, of_memory = (f"{value:.2f}" for value in exponents)
        text += (
            f"| {JOBS[name][0]} | {', '.join(f'{n:,}' for n in sizes)} | "
            f"{', '.join(f'{value:.3g}' for value in seconds)} | {whole} | "
            f"{last} | {', '.join(map(str, memory))} | {of_memory} |\n"
        )
    tables.publish(args, "One run each:", text, "growth-of-data")


if __name__ == "__main__":
    main()
