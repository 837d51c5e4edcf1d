"""Batches of one size, where a smaller last one would not do.

Replicas must hold the same number of rows, and microbatches divide them. The
last batch is filled up with rows of zeros, and a mask tells which rows are
examples. It travels where Keras keeps labels, of which there are none here.
"""

import keras
import numpy as np

from align_keras.keras_hub_internals import DataAdapter
from align_keras.keras_hub_internals import get_data_adapter

IS_EXAMPLE = "is_example"


class PaddingMixin:
    """Fills up the last batch, where it would be too small.

    A subclass has the method `batch_multiple()`, of which the size of a batch
    must be a multiple.
    """

    def fit(self, x=None, y=None, batch_size=None, *args, **kwargs):
        microbatches = self.microbatch_size is not None
        if not microbatches and self.batch_multiple() == 1:
            return super().fit(x, y, batch_size, *args, **kwargs)
        validation = kwargs.get("validation_data")
        if validation is not None:
            val_x, val_y, val_weight = keras.utils.unpack_x_y_sample_weight(
                validation
            )
            val_x = self._padded(
                val_x,
                val_y,
                kwargs.get("validation_batch_size") or batch_size,
                sample_weight=val_weight,
                steps_per_epoch=kwargs.get("validation_steps"),
            )
            kwargs["validation_data"] = val_x
        if kwargs.get("validation_split"):
            raise ValueError(
                "`validation_split` cannot be used with several replicas or "
                "microbatches. Pass `validation_data` instead. Received: "
                f"validation_split={kwargs['validation_split']}"
            )
        options = {
            "sample_weight": kwargs.pop("sample_weight", None),
            "class_weight": kwargs.pop("class_weight", None),
            "steps_per_epoch": kwargs.get("steps_per_epoch"),
            "shuffle": kwargs.get("shuffle", True),
        }
        x = self._padded(x, y, batch_size, microbatches, **options)
        return super().fit(x, None, None, *args, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        if kwargs.get("_use_cached_eval_dataset"):  # `fit` has padded it.
            return super().evaluate(x, **kwargs)
        x = self._padded(
            x,
            y,
            batch_size,
            sample_weight=kwargs.pop("sample_weight", None),
            steps_per_epoch=kwargs.get("steps"),
        )
        return super().evaluate(x, None, None, *args, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        x = self._padded(
            x, None, batch_size, steps_per_epoch=kwargs.get("steps")
        )
        outputs = super().predict(x, None, *args, **kwargs)
        rows = outputs.pop(IS_EXAMPLE, None)
        if rows is None:
            return outputs
        rows = rows.astype(bool)
        return {name: values[rows] for name, values in outputs.items()}

    def _padded(self, x, y, batch_size, microbatches=False, **kwargs):
        """Return an adapter for `x` whose batches are all of one size."""
        if isinstance(x, DataAdapter):
            return x
        adapter = get_data_adapter(x, y, batch_size=batch_size, **kwargs)
        if is_distributed(x):
            return adapter
        multiple = self.batch_multiple()
        size = adapter.batch_size
        uneven = size is None or size % multiple
        partial = adapter.has_partial_batch
        if partial is None:  # A data set; a static size holds for all batches.
            partial = size is None
        if uneven or partial and (multiple > 1 or microbatches):
            return PaddedBatches(adapter, multiple)
        return adapter


def is_distributed(data):
    """Whether `tf.distribute` has split the batches of a data set already."""
    return type(data).__name__.startswith("Distributed")


class PaddedBatches(DataAdapter):
    """Yields `(inputs, mask, sample_weight)` with batches of one size.

    Args:
        adapter: `DataAdapter`. Yields batches, the first of which is as large
            as any other.
        multiple: int. What the size of a batch is made a multiple of.
    """

    def __init__(self, adapter, multiple):
        self._adapter = adapter
        self._multiple = multiple
        self._size = adapter.batch_size
        if adapter.num_batches == 1:
            self._size = adapter.partial_batch_size or self._size
        if self._size:
            self._size = self._round_up(self._size)

    def get_tf_dataset(self):
        import tensorflow as tf

        def pad(size, *data):
            inputs, _, weights = keras.utils.unpack_x_y_sample_weight(
                data[0] if len(data) == 1 else data
            )
            rows = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
            size = tf.maximum(size, self._round_up(rows))

            def fill(tensor):
                margins = [[0, size - rows]] + [[0, 0]] * (tensor.ndim - 1)
                padded = tf.pad(tensor, margins)
                padded.set_shape([self._size, *tensor.shape[1:]])
                return padded

            mask = tf.ones([rows], "bool")
            data = inputs, mask, weights
            data = data[: 2 if weights is None else 3]
            return size, tf.nest.map_structure(fill, data)

        start = tf.constant(self._size or 0, tf.int64)
        return self._adapter.get_tf_dataset().scan(start, pad)

    def get_jax_iterator(self):
        size = self._size or 0
        for data in self._adapter.get_jax_iterator():
            inputs, _, weights = keras.utils.unpack_x_y_sample_weight(data)
            rows = len(next(iter(inputs.values())))
            size = max(size, self._round_up(rows))

            def fill(array, missing=size - rows):
                margins = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
                return np.pad(array, margins)

            data = inputs, np.ones([rows], "bool"), weights
            data = data[: 2 if weights is None else 3]
            yield keras.tree.map_structure(fill, data)

    def _round_up(self, rows):
        return -(-rows // self._multiple) * self._multiple

    @property
    def num_batches(self):
        return self._adapter.num_batches

    @property
    def batch_size(self):
        return self._size

    @property
    def has_partial_batch(self):
        return False

    @property
    def partial_batch_size(self):
        return None

    def on_epoch_begin(self):
        self._adapter.on_epoch_begin()

    def on_epoch_end(self):
        self._adapter.on_epoch_end()
