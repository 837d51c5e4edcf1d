"""Recall and speed of approximate search against the exact one.

    python benchmarks/search.py --vectors 1000000 --dim 640

The vectors are drawn around the centres of topics: they spread within a space
of 64 directions, with a little noise in all others. Embeddings of photographs
are distributed in this way, whereas uniformly drawn vectors have no meaningful
neighbours. Queries are drawn in the same way and are not in the index.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from align_keras.search.approximate import FaissSearch
from align_keras.search.approximate import build
from align_keras.search.exact import nearest

TOPICS, DIRECTIONS, NOISE = 2000, 64, 0.25
# Changes to the settings that `build` chose.
EFFORTS = {
    "ivf-pq": ({}, {"probes": 64}, {"probes": 256}),
    "hnsw": ({}, {"breadth": 100}, {"breadth": 400}),
}


def draw(count, dim, seed, world):
    """Draw unit vectors `(count, dim)` around the centres of topics."""
    rng = np.random.default_rng([seed, 1])
    centres, directions = world
    within = rng.normal(size=(count, DIRECTIONS)).astype("float32")
    vectors = centres[rng.integers(0, TOPICS, count)]
    vectors = vectors + within @ directions
    vectors += NOISE * rng.normal(size=(count, dim)).astype("float32")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main():
    """Measure each kind of search and print one JSON object for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--kinds", default="ivf-pq,hnsw")
    parser.add_argument("--directory", help="default: a temporary one")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    world = (
        rng.normal(size=(TOPICS, args.dim)).astype("float32"),
        rng.normal(size=(DIRECTIONS, args.dim)).astype("float32") / 8,
    )
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        folder = Path(folder)
        path = folder / "vectors.npy"
        vectors = np.lib.format.open_memmap(
            path, "w+", "float32", (args.vectors, args.dim)
        )
        for seed, start in enumerate(range(0, args.vectors, 50_000)):
            part = vectors[start : start + 50_000]
            part[:] = draw(len(part), args.dim, seed, world)
        vectors.flush()
        vectors = np.load(path, mmap_mode="r")
        queries = draw(args.queries, args.dim, 10**6, world)
        print(json.dumps(measure_exact(queries, vectors, args.k)), flush=True)
        expected, _ = nearest(queries, vectors, args.k)
        for kind in args.kinds.split(","):
            for result in measure(kind, folder, queries, vectors, expected):
                print(json.dumps(result), flush=True)


def measure_exact(queries, vectors, k):
    """Time exact search, for single queries and for a batch."""
    nearest(queries[:1], vectors, k)
    with Clock() as single:
        for query in queries[:20]:
            nearest(query[None], vectors, k)
    with Clock() as together:
        nearest(queries[:64], vectors, k)
    return {
        "kind": "exact",
        "vectors": len(vectors),
        "one_by_one": single.rates(min(20, len(queries))),
        "together": together.rates(min(64, len(queries))),
        f"recall@{k}": 1.0,
    }


def measure(kind, folder, queries, vectors, expected):
    """Build an index, and measure its time and recall."""
    with Clock() as clock:
        settings = build(kind, vectors, folder / kind)
    yield {
        "kind": kind,
        "vectors": len(vectors),
        **settings,
        "build_seconds": round(clock.wall, 1),
        "build_cpu_seconds": round(clock.cpu, 1),
        "bytes_per_vector": round(
            (folder / kind).stat().st_size / len(vectors), 1
        ),
    }
    for change in EFFORTS[kind]:
        changed = {**settings, **change}
        search = FaissSearch(folder / kind, vectors, changed)
        yield {"kind": kind, **change, **ask(search, queries, expected)}


def ask(search, queries, expected):
    """Measure the recall and speed of one search."""
    k = expected.shape[1]
    search(queries[:8], k)
    with Clock() as single:
        found = [search(query[None], k)[0][0] for query in queries]
    with Clock() as together:
        search(queries, k)
    hits = [
        len(set(ours) & set(right))
        for ours, right in zip(found, expected, strict=True)
    ]
    return {
        "one_by_one": single.rates(len(queries)),
        "together": together.rates(len(queries)),
        f"recall@{k}": round(float(np.mean(hits)) / k, 4),
    }


class Clock:
    """Measure wall seconds, and processor seconds for busy machines."""

    def __enter__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall = time.perf_counter() - self.wall
        self.cpu = time.process_time() - self.cpu

    def rates(self, count):
        """Return queries per second."""
        return {
            "queries_per_second": round(count / self.wall, 2),
            "queries_per_cpu_second": round(count / self.cpu, 2),
        }


if __name__ == "__main__":
    main()
