"""Recall and speed of approximate search against the exact one.

    python benchmarks/search.py --vectors 1000000 --dim 640

The vectors are drawn: centres of topics, around which they spread within a
space of 64 directions, and a little noise in all others. So do embeddings of
photographs lie, whereas vectors drawn evenly have no neighbours worth finding.
A query is a vector that was drawn likewise and is not in the index.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from align_keras.search.approximate import BUILDERS
from align_keras.search.approximate import FaissSearch
from align_keras.search.exact import nearest

TOPICS, DIRECTIONS, NOISE = 2000, 64, 0.25


def draw(count, dim, seed, world):
    """Draw unit vectors `(count, dim)` in a world of topics."""
    rng = np.random.default_rng([seed, 1])
    centres, directions = world
    within = rng.normal(size=(count, DIRECTIONS)).astype("float32")
    vectors = centres[rng.integers(0, TOPICS, count)]
    vectors = vectors + within @ directions
    vectors += NOISE * rng.normal(size=(count, dim)).astype("float32")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main():
    """Measure, and print one JSON object for each kind of search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--queries", type=int, default=200)
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
            result = measure(kind, folder, queries, vectors, expected)
            print(json.dumps(result), flush=True)


def measure_exact(queries, vectors, k):
    """Time one query after the other, and all of them together."""
    some = queries[:20]
    nearest(some[:1], vectors, k)
    start = time.perf_counter()
    for query in some:
        nearest(query[None], vectors, k)
    single = time.perf_counter() - start
    start = time.perf_counter()
    nearest(queries[:64], vectors, k)
    together = time.perf_counter() - start
    return {
        "kind": "exact",
        "vectors": len(vectors),
        "queries_per_second": round(len(some) / single, 2),
        "queries_per_second_in_batches_of_64": round(64 / together, 2),
        "recall@10": 1.0,
    }


def measure(kind, folder, queries, vectors, expected):
    """Build, and measure recall and time against the exact results."""
    start = time.perf_counter()
    settings = BUILDERS[kind](vectors, folder / kind)
    built = time.perf_counter() - start
    search = FaissSearch(folder / kind, vectors, settings)
    k = expected.shape[1]
    search(queries[:8], k)
    start = time.perf_counter()
    found = [search(query[None], k)[0][0] for query in queries]
    single = time.perf_counter() - start
    start = time.perf_counter()
    search(queries, k)
    together = time.perf_counter() - start
    hits = [
        len(set(ours) & set(right))
        for ours, right in zip(found, expected, strict=True)
    ]
    return {
        "kind": kind,
        "vectors": len(vectors),
        **settings,
        "build_seconds": round(built, 1),
        "bytes_per_vector": round(
            (folder / kind).stat().st_size / len(vectors), 1
        ),
        "queries_per_second": round(len(queries) / single, 2),
        "queries_per_second_in_batches": round(len(queries) / together, 2),
        f"recall@{k}": round(float(np.mean(hits)) / k, 4),
    }


if __name__ == "__main__":
    main()
