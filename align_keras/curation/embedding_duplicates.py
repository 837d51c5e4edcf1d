"""Find near-duplicates by embedding, as in appendix A of the paper.

k-means clusters all training images. An image belongs to its ten nearest
clusters, and so to 120 buckets, one for each choice of three of them. A
training image is compared with each test image that shares a bucket with it,
and the two are near-duplicates if their cosine is above 0.975.

Reference:
    - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), appendix A.
"""

import contextlib
import functools
import itertools
import logging
import os
import secrets
from collections.abc import Callable

import numpy as np

from align_keras import registry
from align_keras.curation.evaluation_images import read_evaluation_images
from align_keras.curation.storage import Storage
from align_keras.io.folders import read_within
from align_keras.io.images import decode_with_pillow
from align_keras.io.optional import OptionalModule

arrow = OptionalModule("pyarrow", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")
faiss = OptionalModule("faiss", extra="curation")

# k-means needs at least the first number of images per cluster, and uses at
# most the second.
MIN_PER_CLUSTER = 39
MAX_PER_CLUSTER = 256
BATCH = 64
# Number of images whose candidates are looked up at once.
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
        vectors: float32 array `(count, dim)` of rows of unit length. It may be
            memory-mapped.
        test_vectors: float32 array `(tests, dim)` of rows of unit length.
        clusters: int. Number of k-means clusters. Fewer are used if there
            are fewer than 39 vectors per cluster. Defaults to `4096`.
        nearest: int. Number of clusters that a vector belongs to. Defaults to
            `10`.
        shared: int. Number of clusters that two vectors must share to be
            compared. Defaults to `3`.
        cosine: float. The cosine must be higher than this. Defaults to
            `0.975`.
        seed: int. Seed of the clustering. Defaults to `0`.

    Returns:
        Tuple of three arrays of the same length: the sorted indices of the
        vectors found, the index of the nearest test vector of each, and their
        cosine.

    Example:

    ```python
    found, tests, cosines = embedding_near_duplicates(train, test)
    ```
    """
    if not len(vectors) or not len(test_vectors):
        empty = np.zeros(0, "int64")
        return empty, empty, np.zeros(0, "float32")
    clusters = _cluster_count(clusters, len(vectors))
    chosen = np.arange(len(vectors))
    limit = clusters * MAX_PER_CLUSTER
    if len(vectors) > limit:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(len(vectors), limit, False))
    centroids = _centroids(vectors[chosen], clusters, seed)
    tests = _TestVectors(test_vectors, centroids, nearest, shared, cosine)
    found = []
    for start in range(0, len(vectors), LOOK_UP):
        rows, *near = tests.near(vectors[start : start + LOOK_UP])
        found.append((rows + start, *near))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _cluster_count(clusters, count):
    return max(1, min(clusters, count // MIN_PER_CLUSTER))


def _centroids(sample, clusters, seed=0):
    """Run k-means on a sample of the vectors and return the centroids."""
    sample = np.ascontiguousarray(sample, "float32")
    kmeans = faiss.Kmeans(sample.shape[1], clusters, seed=seed)
    kmeans.train(sample)
    return kmeans.centroids


class _TestVectors:
    """The test vectors by bucket; see `embedding_near_duplicates`."""

    def __init__(self, vectors, centroids, nearest, shared, cosine):
        self.vectors, self.centroids = vectors, centroids
        self.nearest = min(nearest, len(centroids))
        self.shared = min(shared, self.nearest)
        self.cosine = cosine
        if len(centroids) ** self.shared >= 2**63:
            raise ValueError(
                f"{len(centroids)} clusters in buckets of {self.shared} are "
                "too many; lower `clusters` or `shared`."
            )
        buckets = self._buckets(vectors)
        owners = np.repeat(np.arange(len(vectors)), buckets.shape[1])
        order = np.argsort(buckets.ravel(), kind="stable")
        self._keys, self._owners = buckets.ravel()[order], owners[order]

    def near(self, vectors):
        """Find vectors near a test vector; return rows, tests and cosines."""
        vectors = np.asarray(vectors, "float32")
        buckets = self._buckets(vectors)
        rows, tests = _candidates(buckets, self._keys, self._owners)
        cosines = np.einsum("ij,ij->i", vectors[rows], self.vectors[tests])
        near = cosines > self.cosine
        return _best(rows[near], tests[near], cosines[near])

    def _buckets(self, vectors):
        return _buckets(vectors, self.centroids, self.nearest, self.shared)


def _buckets(vectors, centroids, nearest, shared):
    """Return the bucket numbers of each vector, `(count, choices)`."""
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
    """Return the distinct pairs (row, test) that share a bucket."""
    flat = buckets.ravel()
    first = np.searchsorted(keys, flat, "left")
    sizes = np.searchsorted(keys, flat, "right") - first
    rows = np.repeat(np.arange(len(flat)) // buckets.shape[1], sizes)
    # The positions first, first + 1, … of all buckets, concatenated.
    steps = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    partners = owners[np.repeat(first, sizes) + steps]
    tests = int(owners.max()) + 1
    pairs = np.unique(rows * tests + partners)
    return pairs // tests, pairs % tests


def _best(rows, partners, cosines):
    """Return the pair with the highest cosine for each row."""
    order = np.lexsort((partners, -cosines, rows))
    rows, partners, cosines = rows[order], partners[order], cosines[order]
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    return rows[first], partners[first], cosines[first]


# === Images to vectors ===


def load_embedder(model) -> Callable:
    """Make a function that embeds images.

    Args:
        model: string, `AlignDualEncoder` or callable. A string names a preset
            with weights, of an `AlignDualEncoder` or of an image tower such
            as `EfficientNetBackbone`, whose feature map is averaged. A
            callable maps a list of uint8 arrays `(height, width, 3)` to an
            array `(count, dim)`.

    Returns:
        A callable that maps a list of uint8 arrays to a float32 array of rows
        of unit length.

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


def find_near_images(rule, rows, stages, key):
    """Find the near-duplicates of test images, and store them as a stage.

    On Spark, executors embed the images and compare them; this process embeds
    the test images and clusters a sample.

    Args:
        rule: `ConfiguredRule` of the kind `near_duplicate_embedding`.
        rows: Ibis table of rows.
        stages: `Stages`.
        key: string. A fingerprint of the rule, the rows and all files that
            the rule reads.

    Returns:
        Ibis table of `image_key`, the name of the nearest test image in
        `test_image`, and their `cosine`.
    """
    given = rule.parameters
    for name in ("model", "images"):
        if not given[name]:
            raise ValueError(f"Rule `{rule.name}` lacks `{name}`.")
    embedder = _Embedder(given["model"])
    embed_tests = functools.cache(lambda: _embed_tests(given, embedder))
    # With another `image_identity`, a row may lack the path of its image.
    named = rows.filter(rows.image_key.notnull() & rows.url.notnull())
    images = named.group_by("image_key").agg(url=named.url.min())
    stages.table(f"{rule.name}-images", key, images)
    files = stages.paths(f"{rule.name}-images-{key}")

    def embed(directory):
        # Load the model here first, where an invalid one raises a clear error.
        embed_tests()
        stages.storage.make_directory(directory)
        work = functools.partial(
            _embed_part, stages.storage.root, directory, given, embedder
        )
        missing = sum(stages.engine.map_whole(work, list(enumerate(files))))
        if missing:
            logger.warning(
                "%d images are not in `%s` or not readable.",
                missing,
                given["images"],
            )

    stage = stages.make(f"{rule.name}-vectors", key, embed)
    rows, parts = stages.notes(stage)["rows"], stages.paths(stage)

    def compare(directory):
        stages.storage.make_directory(directory)
        place = stages.storage.root, directory
        names, test_vectors = embed_tests()
        if not rows or not len(test_vectors):
            _write_near(*place, 0, [])
            return
        clusters = _cluster_count(given["clusters"], rows)
        share = clusters * MAX_PER_CLUSTER / rows
        take = functools.partial(_sample, stages.storage.root, share)
        samples = list(stages.engine.map_whole(take, parts))
        keys, sample = map(np.concatenate, zip(*samples, strict=True))
        # Sort, so that the centroids do not depend on the order of the rows.
        centroids = _centroids(sample[np.argsort(keys)], clusters)
        settings = (given[n] for n in ("nearest", "shared", "cosine"))
        tests = _TestVectors(test_vectors, centroids, *settings)
        work = functools.partial(_compare, *place, tests, names)
        list(stages.engine.map_whole(work, list(enumerate(parts))))

    return stages.store(f"{rule.name}-near_images", key, compare)


class _Embedder:
    """A model that each process loads once per run, on the first call."""

    _loaded: dict[str, Callable] = {}

    def __init__(self, model):
        self.model, self.run = model, secrets.token_hex()

    def __call__(self, images):
        if self.run not in self._loaded:
            self._loaded.clear()
            self._loaded[self.run] = load_embedder(self.model)
        return self._loaded[self.run](images)


def _embed_tests(given, embedder):
    """Return the names and vectors of the test images."""
    names, vectors = [], []
    images = (
        image
        for path in given["test_images"]
        for image in read_evaluation_images(path, given["allow_outside"])
    )
    for batch in _batched(images):
        names += [name for name, _ in batch]
        vectors.append(embedder([pixels for _, pixels in batch]))
    return names, np.concatenate(vectors or [np.zeros((0, 1), "float32")])


def _batched(images):
    while batch := list(itertools.islice(images, BATCH)):
        yield batch


def _embed_part(root, directory, given, embedder, part):
    """Embed the images listed in one file; return how many are missing."""
    number, file = part
    storage, missing = Storage(root), 0

    def images():
        nonlocal missing
        for key, url in _rows(storage, file, ("image_key", "url")):
            try:
                contents = read_within(
                    given["images"], url, given["allow_outside"]
                )
                yield key, decode_with_pillow(contents)
            except (OSError, ValueError):
                missing += 1

    writer = None
    with contextlib.ExitStack() as stack:
        for batch in _batched(images()):
            vectors = embedder([pixels for _, pixels in batch])
            if writer is None:
                output = storage.whole_file(f"{directory}/{number:06d}.stage")
                schema = _vector_schema(vectors.shape[1])
                writer = stack.enter_context(
                    parquet.ParquetWriter(stack.enter_context(output), schema)
                )
            keys = [key for key, _ in batch]
            columns = [arrow.array(keys), _vector_array(vectors)]
            writer.write_batch(arrow.record_batch(columns, schema=schema))
    return missing


def _vector_schema(dim):
    vector = arrow.list_(arrow.float32(), dim)
    return arrow.schema({"image_key": arrow.int64(), "vector": vector})


def _vector_array(vectors):
    flat = arrow.array(vectors.ravel())
    return arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _rows(storage, file, columns):
    """Yield some columns of a stage's file as tuples, one per row."""
    for batch in _batches(storage, file, columns):
        lists = (batch[name].to_pylist() for name in columns)
        yield from zip(*lists, strict=True)


def _batches(storage, file, columns):
    with storage.open_input(file) as source:
        yield from parquet.ParquetFile(source).iter_batches(
            LOOK_UP, columns=list(columns)
        )


def _vectors(root, file):
    """Yield the keys and vectors of a file that `_embed_part` wrote."""
    for batch in _batches(Storage(root), file, ("image_key", "vector")):
        vectors = batch["vector"].flatten().to_numpy()
        yield batch["image_key"].to_numpy(), vectors.reshape(len(batch), -1)


def _sample(root, share, file):
    """Sample keys and vectors of a file, regardless of their order."""
    found = []
    for keys, vectors in _vectors(root, file):
        # Choose by a hash of the key, so that the sample is the same on every
        # engine.
        mixed = keys.astype("uint64") * np.uint64(0x9E3779B97F4A7C15)
        chosen = (mixed >> np.uint64(11)) * 2.0**-53 < share
        found.append((keys[chosen], vectors[chosen]))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _compare(root, directory, tests, names, part):
    """Write the images of a file that are near a test image."""
    number, file = part
    found = []
    for keys, vectors in _vectors(root, file):
        rows, nearest, cosines = tests.near(vectors)
        tested = [names[test] for test in nearest]
        found += zip(keys[rows].tolist(), tested, cosines, strict=True)
    _write_near(root, directory, number, found)


def _write_near(root, directory, number, found):
    schema = arrow.schema(
        {
            "image_key": arrow.int64(),
            "test_image": arrow.string(),
            "cosine": arrow.float32(),
        }
    )
    rows = [dict(zip(schema.names, row, strict=True)) for row in found]
    table = arrow.Table.from_pylist(rows, schema)
    name = f"{directory}/{number:06d}.stage"
    with Storage(root).whole_file(name) as file:
        parquet.write_table(table, file)
