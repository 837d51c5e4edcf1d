"""Diagnose a run by embedding one batch in several ways."""

import functools
import itertools
import logging

import keras
import numpy as np
from keras import ops

from align_keras.data import open_records
from align_keras.data.order import RecordOrder
from align_keras.data.records import decode_record
from align_keras.data.records import record_offsets
from align_keras.io.stores import read_range
from align_keras.training import diagnostics

logger = logging.getLogger("align_keras")

# 64 examples form 2,016 pairs, and take the largest model about a second.
PAIRS = 64
# Batch statistics over groups of this many examples need whole groups.
RUN = 16


class Diagnosis:
    """Measures how well the encoders of a model separate different inputs.

    It reads its batch independently of training, so that the order of the
    training data stays the same. It runs the model with copies of its state,
    so that neither random numbers nor statistics change.

    Args:
        data: see `load_dataset`. The pairs to embed.
        model: `AlignDualEncoder` with its preprocessor.
        recipe: `Recipe`.
    """

    def __init__(self, data, model, recipe):
        self._data = data
        self._preprocessor = model.preprocessor
        self._seed = recipe.seed
        self._batch = None
        self._said = set()

    def batch(self):
        """Return images and tokens as NumPy arrays, read on the first call."""
        if self._batch is None:
            examples = list(itertools.islice(self._examples(), PAIRS))
            if not examples:
                raise ValueError(
                    f"None of the records in `{self._data}` can be used."
                )
            whole = len(examples) // RUN * RUN or len(examples)
            images, captions = zip(*examples[:whole], strict=True)
            tokens = self._preprocessor.tokenize(captions)
            batch = {"images": np.concatenate(images)}
            batch |= {k: ops.convert_to_numpy(v) for k, v in tokens.items()}
            # Two images may have the same caption.
            _, places = np.unique(batch["token_ids"], axis=0, return_index=True)
            tokens = {
                name: batch[name][np.sort(places)]
                for name in ("token_ids", "padding_mask")
            }
            self._batch = {"images": batch["images"], **tokens}
        return self._batch

    def _examples(self):
        """Yield images and captions of one shuffled epoch.

        It reads them one by one, because tracing a pipeline takes longer.
        """
        records = open_records(self._data)
        counts = {file: n for file, n in records.counts.items() if n}
        places = RecordOrder(counts, self._seed, 2048).places()
        offsets = functools.cache(record_offsets)
        for file, i in itertools.islice(places, records.total):
            begin, end = map(int, offsets(file)[i : i + 2])
            # Skip the checksum; training verifies it.
            record = read_range(file, begin + 12, end - 4)
            try:
                example = decode_record(record)
                converter = self._preprocessor.image_converter
                image = converter.load(example["image"])
            except ValueError:
                continue  # Training reports it.
            yield image, example["captions"][0]

    def of_fresh(self, model):
        """Diagnose a model before its first step.

        Returns:
            A dict with `"text_self_match"` and `"text_cosine"`.
        """
        first, second = self._texts_twice(model)
        if len(first) < 2:
            return {}
        found = {
            "text_self_match": diagnostics.self_match(first, second),
            "text_cosine": diagnostics.mean_cosine(self._texts(model)),
        }
        logger.info(
            "At the start, %.0f%% of %d texts are nearest to themselves under "
            "dropout; different texts have a cosine of %.3f.",
            100 * found["text_self_match"],
            len(first),
            found["text_cosine"],
        )
        # A high cosine is no collapse here: a fresh encoder has learned
        # nothing yet.
        self._warn({"text_self_match": found["text_self_match"]})
        return found

    def __call__(self, model):
        """Diagnose a model at an evaluation.

        Returns:
            A dict with `"image_cosine"` (with moving statistics),
            `"image_cosine_batch_statistics"` and `"text_cosine"`.
        """
        found = {
            "image_cosine": self._images(model, training=False),
            "image_cosine_batch_statistics": self._images(model, training=True),
            "text_cosine": self._texts(model),
        }
        found = {
            name: diagnostics.mean_cosine(vectors)
            for name, vectors in found.items()
            if len(vectors) > 1
        }
        self._warn(found)
        return found

    def _warn(self, found):
        for sentence in diagnostics.warnings(found):
            # Warn once of each problem, whatever its numbers.
            kind = sentence.partition(":")[0]
            if kind not in self._said:
                self._said.add(kind)
                logger.warning("%s", sentence)

    def _images(self, model, training):
        with keras.StatelessScope():
            vectors = model.image_features(self.batch()["images"], training)
        return ops.convert_to_numpy(vectors)

    def _texts(self, model):
        return ops.convert_to_numpy(
            model.text_features(self._tokens(), training=False)
        )

    def _texts_twice(self, model):
        with keras.StatelessScope():
            # The second pass continues the random numbers of the first.
            vectors = [
                model.text_features(self._tokens(), training=True)
                for _ in range(2)
            ]
        return [ops.convert_to_numpy(v) for v in vectors]

    def _tokens(self):
        names = ("token_ids", "padding_mask")
        return {
            name: ops.convert_to_tensor(self.batch()[name]) for name in names
        }
