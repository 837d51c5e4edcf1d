"""Near-duplicates by embedding, as in appendix A of the paper.

All training images are put into clusters by k-means. An image belongs to
its ten nearest clusters, and so to 120 buckets, the choices of three of them.
A training and a test image that share a bucket are compared, and are
near-duplicates where their cosine is above 0.975.

Reference:
    - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), appendix A.
"""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable

import numpy as np

from align_keras import registry
from align_keras.curation.evaluation_images import read_evaluation_images
from align_keras.io.folders import read_within
from align_keras.io.images import decode_with_pillow
from align_keras.io.optional import OptionalModule

arrow = OptionalModule("pyarrow", extra="curation")
faiss = OptionalModule("faiss", extra="curation")

# k-means wants at least so many images for each cluster, and uses no more
# than the second number.
MIN_PER_CLUSTER = 39
MAX_PER_CLUSTER = 256
BATCH = 64
# Images whose candidates are looked up at once.
LOOK_UP = 4096

logger = logging.getLogger("align_keras")


def embedding_near_duplicates(
    vectors: np.ndarray,
    test_vectors: np.ndarray,
    clusters: int = 4096,
    nearest: int = 10,
    shared: int = 3,
    cosine: float = 0.975,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the vectors that are nearly equal to a test vector.

    Args:
        vectors: float32 array `(count, dim)`, may be memory-mapped. Rows of
            unit length.
        test_vectors: float32 array `(tests, dim)`, likewise.
        clusters: int. Number of k-means clusters; fewer where there are
            fewer than 39 vectors for each. Defaults to `4096`.
        nearest: int. Clusters that a vector belongs to. Defaults to `10`.
        shared: int. Clusters that two vectors must share to be compared.
            Defaults to `3`.
        cosine: float. They must be nearer than this. Defaults to `0.975`.
        seed: int. Of the clustering. Defaults to `0`.

    Returns:
        Tuple of three arrays of one length: indices of the vectors, sorted;
        of each, the index of the nearest test vector found; their cosine.

    Example:

    ```python
    found, tests, cosines = embedding_near_duplicates(train, test)
    ```
    """
    count = len(vectors)
    if not count or not len(test_vectors):
        empty = np.zeros(0, "int64")
        return empty, empty, np.zeros(0, "float32")
    clusters = max(1, min(clusters, count // MIN_PER_CLUSTER))
    nearest = min(nearest, clusters)
    shared = min(shared, nearest)
    if clusters**shared >= 2**63:
        raise ValueError(
            f"{clusters} clusters in buckets of {shared} are too many; lower "
            "`clusters` or `shared`."
        )
    centroids = _cluster(vectors, clusters, seed)
    tests = _buckets(test_vectors, centroids, nearest, shared)
    owners = np.repeat(np.arange(len(test_vectors)), tests.shape[1])
    order = np.argsort(tests.ravel(), kind="stable")
    keys, owners = tests.ravel()[order], owners[order]
    found = []
    for start in range(0, count, LOOK_UP):
        part = np.asarray(vectors[start : start + LOOK_UP], "float32")
        buckets = _buckets(part, centroids, nearest, shared)
        rows, partners = _candidates(buckets, keys, owners)
        cosines = np.einsum("ij,ij->i", part[rows], test_vectors[partners])
        near = cosines > cosine
        found.append(_best(rows[near] + start, partners[near], cosines[near]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _cluster(vectors, clusters, seed):
    """Centroids of k-means on a sample of the vectors."""
    limit = clusters * MAX_PER_CLUSTER
    chosen = np.arange(len(vectors))
    if len(vectors) > limit:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(len(vectors), limit, False))
    sample = np.ascontiguousarray(vectors[chosen], "float32")
    kmeans = faiss.Kmeans(sample.shape[1], clusters, seed=seed)
    kmeans.train(sample)
    return kmeans.centroids


def _buckets(vectors, centroids, nearest, shared):
    """Numbers of the buckets of each vector, `(count, choices)`."""
    vectors = np.ascontiguousarray(vectors, "float32")
    _, found = faiss.knn(vectors, np.asarray(centroids, "float32"), nearest)
    found = np.sort(found, axis=1)
    buckets = [
        sum(
            found[:, one].astype("int64") * len(centroids) ** place
            for place, one in enumerate(choice)
        )
        for choice in itertools.combinations(range(nearest), shared)
    ]
    return np.stack(buckets, axis=1)


def _candidates(buckets, keys, owners):
    """Pairs (row, test) that share a bucket, each once."""
    flat = buckets.ravel()
    first = np.searchsorted(keys, flat, "left")
    sizes = np.searchsorted(keys, flat, "right") - first
    rows = np.repeat(np.arange(len(flat)) // buckets.shape[1], sizes)
    # Positions first, first + 1, … of each bucket, one after the other.
    steps = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    partners = owners[np.repeat(first, sizes) + steps]
    tests = int(owners.max()) + 1
    pairs = np.unique(rows * tests + partners)
    return pairs // tests, pairs % tests


def _best(rows, partners, cosines):
    """Of each row the pair of the highest cosine."""
    order = np.lexsort((partners, -cosines, rows))
    rows, partners, cosines = rows[order], partners[order], cosines[order]
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    return rows[first], partners[first], cosines[first]


# === Images to vectors ===


def load_embedder(model) -> Callable:
    """Make a function from images to vectors.

    Args:
        model: string, a preset with weights of an `AlignDualEncoder` or of an
            image tower, such as `EfficientNetBackbone`, whose feature map is
            averaged; an `AlignDualEncoder`; or any callable from a list of
            uint8 arrays `(height, width, 3)` to an array `(count, dim)`.

    Returns:
        A callable of a list of uint8 arrays, which returns a float32 array of
        rows of unit length.

    Raises:
        ValueError: There is no such preset, or it has no weights.
    """
    if isinstance(model, (str, os.PathLike)):
        model = registry.find("load_image_encoder")(os.fspath(model))
    encode = getattr(model, "encode_image", model)

    def embed(images):
        import keras

        vectors = keras.ops.convert_to_numpy(encode(images))
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(length, 1e-12)).astype("float32")

    return embed


def embed_images(images, embedder, path):
    """Embed any number of images into a file of float32 rows.

    Args:
        images: iterable of uint8 arrays.
        embedder: as `load_embedder` returns it.
        path: string. The file to write.

    Returns:
        float32 array `(count, dim)`, memory-mapped.
    """
    count, width = 0, 0
    images = iter(images)
    with open(path, "wb") as file:
        while batch := list(itertools.islice(images, BATCH)):
            vectors = embedder(batch)
            vectors.tofile(file)
            count, width = count + len(vectors), vectors.shape[1]
    if not count:
        return np.zeros((0, 1), "float32")
    return np.memmap(path, "float32", "r", shape=(count, width))


def find_near_images(rule, rows, stages, key):
    """Make the table of near-duplicates, as a stage.

    Args:
        rule: `Rule` of the kind `near_duplicate_embedding`.
        rows: Ibis table of rows.
        stages: `Stages`.
        key: string. A fingerprint of the rule, the rows and the test sets.

    Returns:
        Ibis table of `image_key`, and of the nearest test image's name and
        `cosine`.
    """
    given = rule.parameters
    for name in ("model", "images"):
        if not given[name]:
            raise ValueError(f"Rule `{rule.name}` lacks `{name}`.")
    # A hash may identify an image that has no name to find it by.
    named = rows.filter(rows.image_key.notnull() & rows.url.notnull())
    images = named.group_by("image_key").agg(url=named.url.min())
    stages.table(f"{rule.name}-images", key, images)

    def near():
        embedder = load_embedder(given["model"])
        keys, names = [], []
        with tempfile.TemporaryDirectory() as folder:
            images = _row_images(
                stages,
                f"{rule.name}-images-{key}",
                given["images"],
                keys,
                given["allow_outside"],
            )
            vectors = embed_images(images, embedder, f"{folder}/rows")
            tests = _test_images(
                given["test_images"], names, given["allow_outside"]
            )
            test_vectors = embed_images(tests, embedder, f"{folder}/tests")
            settings = ("clusters", "nearest", "shared", "cosine")
            found, nearest, cosines = embedding_near_duplicates(
                vectors, test_vectors, **{n: given[n] for n in settings}
            )
        return arrow.table(
            {
                "image_key": np.asarray(keys, "int64")[found],
                "test_image": [names[number] for number in nearest],
                "cosine": cosines,
            }
        )

    return stages.arrow(f"{rule.name}-near_images", key, near)


def _test_images(paths, names, allow_outside):
    """Decode test images; `names` grows by what they are called."""
    for path in paths:
        for name, pixels in read_evaluation_images(path, allow_outside):
            names.append(name)
            yield pixels


def _row_images(stages, stage, folder, keys, allow_outside):
    """Decode the images of rows; `keys` grows by those that could be."""
    missing = 0
    for image_key, url in stages.values(stage, ("image_key", "url")):
        try:
            contents = read_within(folder, url, allow_outside)
            pixels = decode_with_pillow(contents)
        except (OSError, ValueError):
            missing += 1
            continue
        keys.append(image_key)
        yield pixels
    if missing:
        logger.warning(
            "%d images are not in `%s` or not readable.", missing, folder
        )
