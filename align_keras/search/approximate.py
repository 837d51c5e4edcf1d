"""Approximate search with FAISS, for more vectors than can be scanned."""

import math
from pathlib import Path

import numpy as np

from align_keras.io.optional import OptionalModule
from align_keras.search.exact import rescore

faiss = OptionalModule("faiss", extra="search")

# Vectors passed to FAISS in one call: 160 MiB at 640 dimensions.
_BLOCK = 1 << 16
# The number of candidates that are scored exactly: a minimum for each kind, and
# a number for each requested result.
_CANDIDATES = {"ivf-pq": 1000, "hnsw": 200}
_CANDIDATES_PER_RESULT = 10
# Each byte of a code names one of so many centroids, which FAISS learns from
# at least as many vectors.
CENTROIDS = 256
# Training vectors that FAISS needs for each centroid.
_EXAMPLES = 40
# The setting that makes a search more thorough, and where to start. It is
# raised up to a bound, until searches for a sample of the vectors find this
# share of the 10 nearest.
_EFFORT = {"ivf-pq": ("probes", 16), "hnsw": ("breadth", 50)}
_MOST_BREADTH = 1600
_RECALL = 0.95
_SAMPLE = 64


def build(
    kind: str, vectors: np.ndarray, path: str | Path, seed: int = 0
) -> dict:
    """Write a FAISS index, and tune how thoroughly to search it.

    Args:
        kind: string, `"ivf-pq"` or `"hnsw"`.
        vectors: float32 array `(count, dim)` of unit vectors, which may be a
            memory map; for `"ivf-pq"` at least `CENTROIDS` of them.
        path: string or `pathlib.Path`. The file to write.
        seed: int. Seed of the samples. Defaults to `0`.

    Returns:
        A dict of settings for `FaissSearch`, and `"recall@10"`: the share of
        the 10 nearest vectors that a search with these settings finds,
        measured on a sample of the vectors themselves.
    """
    settings = _BUILDERS[kind](vectors, path, seed)
    name, effort = _EFFORT[kind]
    bound = settings.get("lists", _MOST_BREADTH)
    sample = np.random.default_rng(seed).permutation(len(vectors))[:_SAMPLE]
    queries = np.array(vectors[sample])
    expected = _nearest_rows(queries, vectors, min(11, len(vectors)))
    while True:
        settings[name] = min(effort, bound)
        recall = _recall(
            FaissSearch(path, vectors, settings), queries, sample, expected
        )
        if recall >= _RECALL or effort >= bound:
            return {**settings, "recall@10": round(recall, 3)}
        effort = effort * 3 // 2


def _nearest_rows(queries, vectors, k):
    """Return the rows of the nearest vectors, in one pass over all vectors."""
    rows = np.zeros((len(queries), 0), "int64")
    scores = np.zeros((len(queries), 0), "float32")
    for start in range(0, len(vectors), _BLOCK):
        part = queries @ vectors[start : start + _BLOCK].T
        numbers = np.arange(start, start + part.shape[1])
        rows = np.hstack([rows, np.broadcast_to(numbers, part.shape)])
        scores = np.hstack([scores, part])
        best = np.argpartition(-scores, min(k, scores.shape[1]) - 1)[:, :k]
        rows = np.take_along_axis(rows, best, axis=1)
        scores = np.take_along_axis(scores, best, axis=1)
    return rows


def _recall(search, queries, own, expected):
    """Return the share of expected rows found, not counting the query's own."""
    found = search(queries, expected.shape[1])
    hits = total = 0
    for row, (ours, _), right in zip(own, found, expected, strict=True):
        right = set(right.tolist()) - {int(row)}
        hits += len(right & set(ours.tolist()))
        total += len(right)
    return hits / max(total, 1)


def _build_ivf_pq(vectors, path, seed):
    """Write a FAISS index of inverted lists of product-quantized vectors.

    Each vector takes about an eighth of a byte per dimension, plus 8 bytes.
    `seed` chooses the sample from which FAISS learns the centroids.
    """
    count, dim = vectors.shape
    lists = 2 ** max(2, round(math.log2(count) / 2))
    lists = min(lists, max(1, count // _EXAMPLES))
    codes = _codes(dim)
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(
        quantizer, dim, lists, codes, 8, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = index.pq.cp.seed = seed + 1
    # As many examples as FAISS asks for; more would mostly take longer.
    index.pq.cp.max_points_per_centroid = _EXAMPLES
    index.pq.cp.niter = 10
    sample = np.random.default_rng(seed).permutation(count)
    sample = np.sort(sample[: _EXAMPLES * max(lists, CENTROIDS)])
    index.train(np.ascontiguousarray(vectors[sample]))
    _add(index, vectors)
    faiss.write_index(index, str(path))
    return {
        "lists": lists,
        "codes": codes,
        "candidates": _CANDIDATES["ivf-pq"],
    }


def _build_hnsw(vectors, path, seed):
    """Write an HNSW graph over vectors that are stored as one byte per value.

    `seed` chooses the sample from which FAISS learns the range of values.
    """
    count, dim = vectors.shape
    index = faiss.IndexHNSWSQ(
        dim, faiss.ScalarQuantizer.QT_8bit, 32, faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = 80
    sample = np.random.default_rng(seed).permutation(count)
    sample = np.sort(sample[: 1 << 15])
    index.train(np.ascontiguousarray(vectors[sample]))
    _add(index, vectors)
    faiss.write_index(index, str(path))
    return {"neighbours": 32, "candidates": _CANDIDATES["hnsw"]}


_BUILDERS = {"ivf-pq": _build_ivf_pq, "hnsw": _build_hnsw}


class FaissSearch:
    """Finds nearest vectors with FAISS and scores them exactly.

    FAISS returns candidates, whose scores are computed from the vectors. Both
    files are memory maps, so that opening them is quick and only the parts in
    use take memory.

    Args:
        path: string or `pathlib.Path`. The file of the FAISS index.
        vectors: float32 array `(count, dim)` of unit vectors, which may be a
            memory map.
        settings: dict that `build` returned.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: the file is not a FAISS index of these vectors.
    """

    def __init__(self, path: str | Path, vectors: np.ndarray, settings: dict):
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        if "neighbours" in settings:
            flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
        try:
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise ValueError(
                f"`{path}` cannot be read as a FAISS index: build the "
                f"search index again. Received: {str(error).splitlines()[-1]}"
            ) from None
        if (index.ntotal, index.d) != vectors.shape:
            raise ValueError(
                f"`{path}` holds {index.ntotal} vectors of {index.d} values, "
                f"but there are {len(vectors)} of {vectors.shape[1]}: build "
                "the search index again."
            )
        if "neighbours" in settings:
            self._parameters = faiss.SearchParametersHNSW(
                efSearch=settings["breadth"]
            )
        else:
            self._parameters = faiss.SearchParametersIVF(
                nprobe=settings["probes"]
            )
        self._index = index
        self._vectors = vectors
        self._candidates = settings["candidates"]

    def __call__(
        self, queries: np.ndarray, k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the vectors nearest to each query.

        Args:
            queries: float32 array `(num_queries, dim)` of unit vectors.
            k: integer.

        Returns:
            A list with a pair of arrays for each query: int64 indices, best
            first, and float32 scores. There may be fewer than `k`.
        """
        count = max(_CANDIDATES_PER_RESULT * k, self._candidates)
        count = min(count, len(self._vectors))
        queries = np.ascontiguousarray(queries, "float32")
        _, candidates = self._index.search(
            queries, count, params=self._parameters
        )
        # FAISS pads with -1 if the lists hold too few vectors.
        return [
            rescore(query, self._vectors, np.sort(row[self._exist(row)]), k)
            for query, row in zip(queries, candidates, strict=True)
        ]

    def _exist(self, rows):
        # A damaged file may contain rows that do not exist.
        return (rows >= 0) & (rows < len(self._vectors))


def _codes(dim):
    """Return the bytes of a code: each encodes about eight values.

    All of them encode the same number, which must divide the dimension.
    """
    shares = [values for values in range(1, dim + 1) if dim % values == 0]
    return dim // min(shares, key=lambda values: abs(values - 8))


def _add(index, vectors):
    for start in range(0, len(vectors), _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
