"""Pad the last batch, so that all batches have the same size.

Replicas must hold the same number of rows, and microbatches must divide it.
The last batch is filled up with rows of zeros, and a mask marks the rows that
are examples. Training here has no labels, so the mask travels in their place,
under a name that labels would not have.
"""

import itertools

import keras
import numpy as np

from align_keras.keras_hub_internals import DataAdapter
from align_keras.keras_hub_internals import get_data_adapter
from align_keras.keras_hub_internals import train_validation_split

IS_EXAMPLE = "is_example"
# Keras drops the sample weights of arrays without labels.
SAMPLE_WEIGHT = "sample_weight"


def unpack(data):
    """Unpack an element of a data set: a tuple, or only the inputs.

    Args:
        data: `inputs`, or a tuple of `(inputs,)`, `(inputs, marks)` or
            `(inputs, marks, sample_weight)`. `marks` is `None` or a dict with
            the mask and the sample weights of the rows.

    Returns:
        A tuple of `inputs`, the bool mask of the rows that are examples, and
        `sample_weight`. Either of the last two may be `None`.

    Raises:
        ValueError: The data has labels.
    """
    inputs, marks, weight = keras.utils.unpack_x_y_sample_weight(data)
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
        (inputs,) = inputs
    if marks is None:
        return inputs, None, weight
    if not isinstance(marks, dict) or set(marks) - {IS_EXAMPLE, SAMPLE_WEIGHT}:
        raise ValueError(
            "There are no labels: the model learns which text belongs to "
            "which image from their order alone. Leave `y` out: texts belong "
            "to the inputs, as `(images, texts)` or a dict, and a batch of a "
            "data set with weights is `(inputs, None, sample_weight)`. "
            f"Received: y={marks}"
        )
    if weight is None:
        weight = marks.get(SAMPLE_WEIGHT)
    return inputs, marks.get(IS_EXAMPLE), weight


def pack(inputs, mask=None, sample_weight=None):
    """Return data that `unpack` splits into these parts again."""
    marks = {IS_EXAMPLE: mask, SAMPLE_WEIGHT: sample_weight}
    marks = {name: value for name, value in marks.items() if value is not None}
    return (inputs, marks) if marks else inputs


class PaddingMixin:
    """Pads the last batch where it would be too small.

    A subclass defines `batch_multiple()`, which returns the number that must
    divide the batch size, and `masks_full_batches()`, which tells whether full
    batches also come with a mask.
    """

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        **kwargs,
    ):
        refuse_class_weight(class_weight)
        y = _marks(y, sample_weight)
        if validation_split and validation_data is None:
            (x, y), validation_data = train_validation_split(
                (x, y), validation_split
            )
        if validation_data is not None:
            validation_data = self._padded(
                *_taken_apart(validation_data),
                validation_batch_size or batch_size,
                steps_per_epoch=validation_steps,
            )
        x = self._padded(
            x,
            y,
            batch_size,
            self.microbatch_size is not None,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
        )
        if isinstance(x, PaddedBatches):
            x.refuse(self.layer_that_minds_padding())
        return super().fit(
            x,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=shuffle,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            **kwargs,
        )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        **kwargs,
    ):
        self._assert_compile_called("evaluate")  # Keras does not on torch.
        # Data that `fit` has padded comes with `_use_cached_eval_dataset`.
        x = self._padded(
            x, _marks(y, sample_weight), batch_size, steps_per_epoch=steps
        )
        return super().evaluate(x, verbose=verbose, steps=steps, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        x = self._padded(
            x, None, batch_size, steps_per_epoch=kwargs.get("steps")
        )
        if isinstance(x, PaddedBatches):  # All batches need one structure.
            x.masks_full_batches = True
        outputs = super().predict(x, None, *args, **kwargs)
        if not isinstance(outputs, dict) or IS_EXAMPLE not in outputs:
            return outputs
        rows = outputs.pop(IS_EXAMPLE).astype(bool)
        return {name: values[rows] for name, values in outputs.items()}

    def train_on_batch(
        self,
        x,
        y=None,
        sample_weight=None,
        class_weight=None,
        return_dict=False,
    ):
        refuse_class_weight(class_weight)
        y = _marks(y, sample_weight)
        _check_rows(x, y)
        return super().train_on_batch(x, y, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        y = _marks(y, sample_weight)
        _check_rows(x, y)
        return super().test_on_batch(x, y, return_dict=return_dict)

    def _adapter(self, x, y, **kwargs):
        """Return the adapter that turns `x` into batches."""
        return get_data_adapter(x, y, **kwargs)

    def _padded(self, x, y, batch_size, microbatches=False, **kwargs):
        """Return an adapter for `x` with batches of equal size."""
        if isinstance(x, DataAdapter):
            return x
        _check_rows(x, y)
        adapter = self._adapter(x, y, batch_size=batch_size, **kwargs)
        if is_distributed(x):
            return adapter
        multiple = self.batch_multiple()
        size = adapter.batch_size
        partial = _has_partial_batch(adapter)
        if partial and adapter.num_batches == 1:
            # There is only one batch, so it has no other to match.
            size, partial = adapter.partial_batch_size, False
        uneven = size is None or size % multiple
        if partial is None:  # A data set. A static size holds for all batches.
            partial = size is None
        needed = multiple > 1 and (uneven or partial)
        if needed or microbatches and partial:
            return PaddedBatches(adapter, multiple, self.masks_full_batches())
        return adapter


def _has_partial_batch(adapter):
    try:
        return adapter.has_partial_batch
    except NotImplementedError:  # A generator does not know.
        return None


def refuse_class_weight(class_weight):
    """Raise `ValueError` if class weights are given."""
    if class_weight is not None:
        raise ValueError(
            "`class_weight` needs class labels, and there are none. Pass "
            "`sample_weight`, a weight for each pair. Received: "
            f"class_weight={class_weight}"
        )


def _check_rows(x, y):
    """Refuse arrays that are empty or hold different numbers of pairs."""
    if x is None or hasattr(x, "shape"):
        raise ValueError(
            "The inputs must be a dict of arrays, `(images, texts)` or a data "
            f"set. Received: {type(x).__name__}"
        )
    if not isinstance(x, dict):
        if y is not None:
            raise ValueError(
                "A data set must yield its weights itself, as batches of "
                "`(inputs, None, sample_weight)`. Received, besides "
                f"{type(x).__name__}: {sorted(y)}"
            )
        return
    rows = {name: len(value) for name, value in {**x, **(y or {})}.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(
            "All inputs, and weights, must have one row for each pair, and "
            f"there must be at least one pair. Received numbers of rows: {rows}"
        )


def _marks(y, sample_weight):
    """Add the sample weights to `y`."""
    _, mask, _ = unpack((None, y))
    if sample_weight is None:
        return y
    if isinstance(sample_weight, (list, tuple)):
        sample_weight = np.asarray(sample_weight)
    dtype = getattr(sample_weight, "dtype", None)
    is_text = getattr(dtype, "kind", "") in ("O", "S", "U")
    if is_text or np.ndim(sample_weight) == 0:
        raise ValueError(
            "`sample_weight` must be one number for each pair. "
            f"Received: sample_weight={sample_weight!r}"
        )
    return pack(None, mask, sample_weight)[1]


def _taken_apart(data):
    """Split `validation_data` into inputs and marks (see `unpack`)."""
    if not isinstance(data, tuple):
        return data, None
    packed = pack(*unpack(data))
    return packed if isinstance(packed, tuple) else (packed, None)


def is_distributed(data):
    """Whether `tf.distribute` has already split the batches of a data set."""
    return type(data).__name__.startswith("Distributed")


class _OtherBatches(DataAdapter):
    """Base class of adapters that change the batches of another adapter.

    Args:
        adapter: `DataAdapter`.
    """

    def __init__(self, adapter):
        self._adapter = adapter

    @property
    def num_batches(self):
        return self._adapter.num_batches

    @property
    def batch_size(self):
        return self._adapter.batch_size

    @property
    def has_partial_batch(self):
        return self._adapter.has_partial_batch

    @property
    def partial_batch_size(self):
        return self._adapter.partial_batch_size

    def get_torch_dataloader(self):
        from torch.utils import data

        class Batches(data.IterableDataset):
            def __iter__(dataset):
                return self.get_numpy_iterator()

        return data.DataLoader(Batches(), batch_size=None)

    def on_epoch_begin(self):
        self._adapter.on_epoch_begin()

    def on_epoch_end(self):
        self._adapter.on_epoch_end()


class MappedBatches(_OtherBatches):
    """Applies a function to each batch.

    Args:
        adapter: `DataAdapter`. Yields arrays.
        function: callable. Takes a batch of the adapter; with the TensorFlow
            backend it runs in a graph.
    """

    def __init__(self, adapter, function):
        super().__init__(adapter)
        self._function = function

    def get_tf_dataset(self):
        import tensorflow as tf

        def run(*data):
            return self._function(data[0] if len(data) == 1 else data)

        return self._adapter.get_tf_dataset().map(run, tf.data.AUTOTUNE)

    def get_numpy_iterator(self):
        for data in self._adapter.get_numpy_iterator():
            yield to_numpy(self._function(data))

    def get_jax_iterator(self):
        return self.get_numpy_iterator()


class LoadedBatches(_OtherBatches):
    """Applies a function to each batch of a torch `DataLoader`.

    Keras assumes that a batch is a tuple, and would keep only the keys of a
    dict.

    Args:
        adapter: `DataAdapter` of the loader.
        function: callable. Takes a batch of the loader.
    """

    def __init__(self, adapter, function):
        super().__init__(adapter)
        self._function = function
        # A batch that cannot be prepared fails before the epoch begins.
        self._some = list(itertools.islice(self.get_numpy_iterator(), 2))

    def get_numpy_iterator(self):
        for data in self._adapter.get_torch_dataloader():
            data = tuple(data) if isinstance(data, list) else data
            data = to_numpy(self._function(data))
            yield data if isinstance(data, tuple) else (data,)

    def get_jax_iterator(self):
        return self.get_numpy_iterator()

    def get_tf_dataset(self):
        import tensorflow as tf

        def spec(*arrays):
            # Leave sizes open that differ between batches, and the first one.
            sizes = zip(*(array.shape for array in arrays), strict=True)
            shape = [size[0] if len(set(size)) == 1 else None for size in sizes]
            return tf.TensorSpec([None, *shape[1:]], arrays[0].dtype)

        return tf.data.Dataset.from_generator(
            self.get_numpy_iterator,
            output_signature=keras.tree.map_structure(spec, *self._some),
        )


def to_numpy(data):
    """Turn all tensors of a structure into NumPy arrays."""
    return keras.tree.map_structure(
        lambda x: x if x is None else keras.ops.convert_to_numpy(x), data
    )


class PaddedBatches(_OtherBatches):
    """Yields batches of equal size, with a mask of their examples.

    Args:
        adapter: `DataAdapter`. No batch may be larger than its first.
        multiple: int. The batch size is rounded up to a multiple of this.
        masks_full_batches: bool. Whether full batches have a mask, too. In a
            TensorFlow graph all batches have one. Defaults to `True`.
    """

    def __init__(self, adapter, multiple, masks_full_batches=True):
        super().__init__(adapter)
        self.masks_full_batches = masks_full_batches
        self._refusal = None
        self._multiple = multiple
        self._size = adapter.batch_size
        if adapter.num_batches == 1 and _has_partial_batch(adapter):
            self._size = adapter.partial_batch_size or self._size
        if self._size:
            self._size = self._round_up(self._size)

    def refuse(self, layer):
        """Raise an error instead of padding a batch.

        Args:
            layer: string. The name of the layer that would count the padding.
                `None` allows padding.

        Raises:
            ValueError: It is already known that the last batch is smaller.
        """
        if layer is None:
            return
        self._refusal = (
            "A batch is smaller than the others or cannot be divided among the "
            f"devices. It would be padded, and the layer `{layer}` would count "
            "the padding in its statistics. Batch the data with "
            "`drop_remainder=True`, or choose a batch size that divides it, or "
            "build the encoder with the layers of `align_keras.models`."
        )
        if _has_partial_batch(self._adapter):
            raise ValueError(self._refusal)

    def get_tf_dataset(self):
        import tensorflow as tf

        def pad(size, *data):
            inputs, _, weights = unpack(data[0] if len(data) == 1 else data)
            rows = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
            size = tf.maximum(size, self._round_up(rows))
            mask = None if self._refusal else tf.ones([rows], "bool")
            if self._refusal:
                tf.debugging.Assert(rows == size, [self._refusal])

            def fill(tensor):
                # A generator's tensors may be of unknown rank.
                others = tf.zeros([tf.rank(tensor) - 1, 2], tf.int64)
                margins = tf.concat([[[0, size - rows]], others], 0)
                padded = tf.pad(tensor, margins)
                if tensor.shape.rank is not None:
                    padded.set_shape([self._size, *tensor.shape[1:]])
                return padded

            data = pack(inputs, mask, weights)
            return size, tf.nest.map_structure(fill, data)

        start = tf.constant(self._size or 0, tf.int64)
        return self._adapter.get_tf_dataset().scan(start, pad)

    def get_jax_iterator(self):
        return self._padded(self._adapter.get_jax_iterator())

    def get_numpy_iterator(self):
        return self._padded(self._adapter.get_numpy_iterator())

    def _padded(self, batches):
        size = self._size or 0
        for data in batches:
            inputs, _, weights = unpack(data)
            rows = len(next(iter(inputs.values())))
            size = max(size, self._round_up(rows))
            if rows < size and self._refusal:
                raise ValueError(self._refusal)

            def fill(array, missing=size - rows):
                margins = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
                return np.pad(array, margins)

            mask = None
            if rows < size or (self.masks_full_batches and not self._refusal):
                mask = np.ones([rows], "bool")
            data = pack(inputs, mask, weights)
            yield keras.tree.map_structure(fill, data)

    def _round_up(self, rows):
        return -(-rows // self._multiple) * self._multiple

    @property
    def batch_size(self):
        return self._size

    @property
    def has_partial_batch(self):
        return False

    @property
    def partial_batch_size(self):
        return None


class OwnRows(PaddedBatches):
    """Yields the rows of one process from batches of equal size.

    All processes read the same batches in the same order.

    Args:
        adapter: `DataAdapter`. See `PaddedBatches`.
        multiple: int. See `PaddedBatches`. Must be a multiple of the number
            of processes.
        process: int. The number of this process, from 0.
        processes: int. The number of processes.
    """

    def __init__(self, adapter, multiple, process, processes):
        super().__init__(adapter, multiple)
        self._process, self._processes = process, processes

    def _padded(self, batches):
        for data in super()._padded(batches):
            yield keras.tree.map_structure(
                lambda rows: np.split(rows, self._processes)[self._process],
                data,
            )

    @property
    def batch_size(self):
        return self._size and self._size // self._processes
