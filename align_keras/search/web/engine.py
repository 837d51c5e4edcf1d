"""The work behind the page: embedding and searching in batches."""

import asyncio
import hashlib

import numpy as np

from align_keras.classes import class_vectors
from align_keras.search.query import combine
from align_keras.search.search import classify
from align_keras.search.search import embed_picture
from align_keras.search.search import embed_words
from align_keras.search.web.batcher import Batcher
from align_keras.search.web.limits import Memory

# Texts in one call of the network: few sizes, so that few are compiled.
_SIZES = (1, 8, 32)
# Vectors that are remembered, 2.5 kB each for 640 values.
_REMEMBERED = 4096


class Engine:
    """Answers queries on an index.

    Args:
        index: an `Index`.
        model: a `SearchModel`.
        max_pixels: int. Larger pictures are refused.
    """

    def __init__(self, index, model, max_pixels):
        self.index = index
        self._model = model
        self._max_pixels = max_pixels
        self._texts = Memory(_REMEMBERED)
        self._classes = Memory(_REMEMBERED)
        self._pictures = Memory(_REMEMBERED)
        self._embed_texts = Batcher(self._texts_to_vectors, _SIZES[-1])
        self._embed_classes = Batcher(
            self._classes_to_vectors, _SIZES[-1], _REMEMBERED
        )
        # One at a time, which bounds the memory of decoding.
        self._embed_pictures = Batcher(self._pictures_to_vectors, 1, 64)
        self._search = Batcher(self._find, 64)

    def warm_up(self):
        """Compile all that requests will run."""
        for size in _SIZES:
            self._texts_to_vectors(["a"] * size)
        blank = np.zeros((8, 8, 3), "uint8")
        embedder = self._model.embedder
        embedder.images([embedder.read(blank)])

    def close(self):
        """End the threads."""
        for batcher in (
            self._embed_texts,
            self._embed_classes,
            self._embed_pictures,
            self._search,
        ):
            batcher.close()
        self.index.close()

    async def add_picture(self, contents):
        """Embed a picture and remember its vector.

        Args:
            contents: bytes of the file.

        Returns:
            string that names it from now on.

        Raises:
            ValueError: it does not decode, or is too large.
        """
        token = hashlib.sha256(contents).hexdigest()[:32]
        if self._pictures.get(token) is None:
            vector = await self._embed_pictures(contents)
            self._pictures.put(token, vector)
        return token

    async def search(self, parts, k):
        """Find pictures.

        Args:
            parts: list of dicts with `"weight"` and one of `"text"`,
                `"picture"` (what `add_picture` returned) and `"row"`.
            k: int.

        Returns:
            list of dicts: row, key, text, score.

        Raises:
            LookupError: a picture is not remembered any more.
            ValueError: the parts cancel out.
        """
        vectors = [await self._vector(part) for part in parts]
        weights = [part["weight"] for part in parts]
        query = combine(list(zip(weights, vectors, strict=True)))
        rows, scores = await self._search((query, k))
        return [
            {
                "row": int(row),
                "key": self.index.key(row),
                "text": self.index.text(row),
                "score": round(float(score), 4),
            }
            for row, score in zip(rows, scores, strict=True)
        ]

    async def labels(self, part, labels):
        """Compare a picture with labels, by the index's prompts.

        Args:
            part: dict with `"picture"` or `"row"`.
            labels: list of strings.

        Returns:
            list of dicts, best first: label, score, and probability, which is
            `None` where the model does not tell its temperature.
        """
        vector = await self._vector(part)
        table = np.stack(await asyncio.gather(*map(self._class, labels)))
        scores, shares = classify(self._model, vector, table)
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

    def prompts(self, labels):
        """Count the prompts that `labels` would embed for a client.

        Those of the index do not count: there are no more than its owner
        chose.

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
        if "picture" in part:
            vector = self._pictures.get(part["picture"])
            if vector is None:
                raise LookupError("The picture is forgotten: drop it again.")
            return vector
        return await self._text(part["text"])

    async def _text(self, text):
        return await _remembered(text, self._texts, self._embed_texts)

    async def _class(self, name):
        return await _remembered(name, self._classes, self._embed_classes)

    # === In threads ===

    def _texts_to_vectors(self, texts):
        size = next(size for size in _SIZES if size >= len(texts))
        filled = texts + texts[:1] * (size - len(texts))
        return embed_words(self._model, filled)[: len(texts)]

    def _classes_to_vectors(self, names):
        def embed(prompts):
            starts = range(0, len(prompts), _SIZES[-1])
            parts = [prompts[start : start + _SIZES[-1]] for start in starts]
            return np.concatenate(list(map(self._texts_to_vectors, parts)))

        return class_vectors(embed, names, self.index.templates)

    def _pictures_to_vectors(self, pictures):
        return [
            embed_picture(self._model, picture, self._max_pixels)
            for picture in pictures
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
