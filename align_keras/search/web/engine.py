"""Embed and search in batches for the web page."""

import asyncio
import hashlib

import numpy as np

from align_keras.classes import class_probabilities
from align_keras.classes import class_vectors
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.search.index import Index
from align_keras.search.query import combine_vectors
from align_keras.search.query import embed_image
from align_keras.search.web.batcher import Batcher
from align_keras.search.web.limits import Memory

# Batch sizes of texts: only few, because each of them is compiled.
_SIZES = (1, 8, 32)
# Maximum number of vectors in each cache, 2.5 kB each for 640 values.
_REMEMBERED = 4096


class Forgotten(Exception):
    """An image is no longer in the cache."""


class Engine:
    """Answers queries on an index.

    Args:
        index: an `Index`.
        embedder: an `Embedder`.
        max_pixels: int. Images with more pixels are refused.
    """

    def __init__(self, index: Index, embedder: Embedder, max_pixels: int):
        self.index = index
        self._embedder = embedder
        self._max_pixels = max_pixels
        self._texts = Memory(_REMEMBERED)
        self._classes = Memory(_REMEMBERED)
        self._images = Memory(_REMEMBERED)
        self._embed_texts = Batcher(self._texts_to_vectors, _SIZES[-1])
        self._embed_classes = Batcher(
            self._classes_to_vectors, _SIZES[-1], _REMEMBERED
        )
        # One at a time, to limit the memory that decoding takes.
        self._embed_images = Batcher(self._images_to_vectors, 1, 64)
        self._search = Batcher(self._find, 64)

    def warm_up(self) -> None:
        """Compile the model for all batch sizes of requests."""
        for size in _SIZES:
            self._texts_to_vectors(["a"] * size)
        embed_image(self._embedder, np.zeros((8, 8, 3), "uint8"))

    def close(self) -> None:
        """End the threads."""
        for batcher in (
            self._embed_texts,
            self._embed_classes,
            self._embed_images,
            self._search,
        ):
            batcher.close()
        self.index.close()

    async def add_image(self, contents: bytes) -> str:
        """Embed an image and cache its vector.

        Args:
            contents: bytes of the file.

        Returns:
            string, a token for use in later requests.

        Raises:
            ValueError: the image does not decode, or is too large.
        """
        token = hashlib.sha256(contents).hexdigest()[:32]
        if self._images.get(token) is None:
            vector = await self._embed_images(contents)
            self._images.put(token, vector)
        return token

    async def search(self, parts: list[dict], k: int) -> list[dict]:
        """Find images.

        Args:
            parts: list of dicts with `"weight"` and one of `"text"`,
                `"image"` (what `add_image` returned) and `"row"`.
            k: int.

        Returns:
            list of dicts: row, key, text, score.

        Raises:
            Forgotten: an image is no longer in the cache.
            ValueError: the parts cancel out.
        """
        vectors = [await self._vector(part) for part in parts]
        weights = [part["weight"] for part in parts]
        query = combine_vectors(list(zip(weights, vectors, strict=True)))
        return self.index.describe(*await self._search((query, k)))

    async def labels(self, part: dict, labels: list[str]) -> list[dict]:
        """Compare an image with labels, using the templates of the index.

        Args:
            part: dict with `"image"` or `"row"`.
            labels: list of strings.

        Returns:
            list of dicts, best first: label, score, and probability, which is
            `None` if the temperature of the model is unknown.
        """
        vector = await self._vector(part)
        table = np.stack(await asyncio.gather(*map(self._class, labels)))
        scores = table @ vector
        shares = class_probabilities(scores, self._embedder.temperature)
        return [
            {
                "label": labels[i],
                "score": round(float(scores[i]), 4),
                "probability": None
                if shares is None
                else round(float(shares[i]), 4),
            }
            for i in np.argsort(-scores, kind="stable")
        ]

    def samples(self, count: int) -> list[dict]:
        """Return some images, evenly spread over the index.

        Args:
            count: int. The maximum number.

        Returns:
            list of dicts: row, key, text.
        """
        total = self.index.count
        chosen = sorted({i * total // count for i in range(count)})
        return [
            {
                "row": row,
                "key": self.index.key(row),
                "text": self.index.text(row),
            }
            for row in chosen
            if row < total
        ]

    def prompts(self, labels: list[str]) -> int:
        """Count the prompts that `labels` would have to embed.

        Labels of the index do not count, because its owner chose how many
        there are.

        Args:
            labels: list of strings.

        Returns:
            int.
        """
        own = set(self.index.labels)
        new = {label for label in labels if self._classes.get(label) is None}
        return len(new - own) * len(self.index.templates)

    async def _vector(self, part):
        if "row" in part:
            return np.array(self.index.vectors[part["row"]])
        if "image" in part:
            vector = self._images.get(part["image"])
            if vector is None:
                raise Forgotten(
                    "The server no longer has the image: drop it again."
                )
            return vector
        return await self._text(part["text"])

    async def _text(self, text):
        return await _remembered(text, self._texts, self._embed_texts)

    async def _class(self, name):
        return await _remembered(name, self._classes, self._embed_classes)

    # === In threads ===

    def _texts_to_vectors(self, texts):
        size = next(size for size in _SIZES if size >= len(texts))
        return embed_texts(self._embedder, texts, size, progress=False)

    def _classes_to_vectors(self, names):
        def embed(prompts):
            starts = range(0, len(prompts), _SIZES[-1])
            parts = [prompts[start : start + _SIZES[-1]] for start in starts]
            return np.concatenate(list(map(self._texts_to_vectors, parts)))

        known = self.index.class_names
        names = [known.get(name, [name]) for name in names]
        return class_vectors(embed, names, self.index.templates)

    def _images_to_vectors(self, images):
        return [
            embed_image(self._embedder, image, self._max_pixels)
            for image in images
        ]

    def _find(self, questions):
        queries = np.stack([query for query, _ in questions])
        most = max(k for _, k in questions)
        found = self.index.search(queries, most)
        return [
            (rows[:k], scores[:k])
            for (rows, scores), (_, k) in zip(found, questions, strict=True)
        ]


async def _remembered(name, memory, make):
    vector = memory.get(name)
    if vector is None:
        vector = await make(name)
        memory.put(name, vector)
    return vector
