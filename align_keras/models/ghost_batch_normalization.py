import keras
from keras import ops

from align_keras.models.batch_normalization import BatchNormalization
from align_keras.models.batch_normalization import broadcast_rows
from align_keras.models.pooling import at_least_float32
from align_keras.models.step_scope import current_mask


@keras.saving.register_keras_serializable(package="align_keras")
class GhostBatchNormalization(BatchNormalization):
    """Batch normalisation with the statistics of small virtual batches.

    In training, the batch is split into runs of `virtual_batch_size` examples,
    each normalised by its own mean and variance. The moving statistics, used
    in inference, follow the average over the runs and are updated once per
    step. The public replica of ALIGN trained better with statistics of 16
    examples than with those of many.

    Args:
        virtual_batch_size: int. Number of examples that share statistics. A
            smaller batch is a single run. Defaults to `16`.
        **kwargs: Arguments of `keras.layers.BatchNormalization`. The channels
            must come last, and `synchronized` must stay `False`.

    Call arguments:
        inputs: float tensor of shape `(batch, ..., channels)`. In training,
            `batch` must be a multiple of `virtual_batch_size`.

    Example:

    ```python
    layer = GhostBatchNormalization(virtual_batch_size=16)
    layer(keras.random.normal((64, 9, 9, 32)), training=True)
    ```

    Reference:
        - [Hoffer et al., 2017](https://arxiv.org/abs/1705.08741)
    """

    def __init__(self, virtual_batch_size=16, **kwargs):
        if kwargs.get("synchronized"):
            raise ValueError(
                "A virtual batch never spans replicas, so `synchronized` must "
                "be False: use `BatchNormalization` for the statistics of all "
                "replicas. Received: synchronized=True"
            )
        if virtual_batch_size < 1:
            raise ValueError(
                "`virtual_batch_size` must be at least 1. "
                f"Received: virtual_batch_size={virtual_batch_size}"
            )
        super().__init__(**kwargs)
        self.virtual_batch_size = virtual_batch_size

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        if mask is not None:
            raise ValueError(
                "`GhostBatchNormalization` takes no `mask`: use "
                "`BatchNormalization`, or remove the mask from the inputs. "
                f"Received: a mask of shape {tuple(mask.shape)}"
            )
        runs = self._split(at_least_float32(inputs))
        axes = tuple(range(1, len(runs.shape) - 1))
        rows = current_mask()
        if rows is None:
            mean, variance = ops.moments(runs, axes=axes, keepdims=True)
            self.update_moving(*map(_average, (mean, variance)))
        else:
            rows = ops.reshape(rows, ops.shape(runs)[:2])
            mean, variance, counts = _moments_of_rows(runs, rows, axes)
            self.update_moving(
                *(_average(value, counts) for value in (mean, variance))
            )
        outputs = self.normalize(runs, mean, variance)
        return ops.reshape(outputs, ops.shape(inputs))

    def has_short_form(self, inputs):
        return False

    def _split(self, inputs):
        """Reshape `(batch, ...)` to `(runs, virtual_batch_size, ...)`."""
        size, batch = self.virtual_batch_size, inputs.shape[0]
        if batch is not None and batch < size:
            size = batch
        if batch is not None and batch % size:
            raise ValueError(
                "The batch of a replica must be a multiple of "
                f"`virtual_batch_size`. Received: batch={batch}, "
                f"virtual_batch_size={self.virtual_batch_size}. Choose "
                "another batch size or virtual batch size."
            )
        return ops.reshape(inputs, (-1, size, *ops.shape(inputs)[1:]))

    def get_config(self):
        config = super().get_config()
        config["virtual_batch_size"] = self.virtual_batch_size
        return config


def _moments_of_rows(runs, rows, axes):
    weights = broadcast_rows(rows, runs)
    rows = ops.sum(weights, axes, keepdims=True)
    places = ops.cast(ops.size(runs[0, 0, ..., 0]), runs.dtype)
    counts = ops.maximum(rows * places, 1.0)
    mean = ops.sum(runs * weights, axes, keepdims=True) / counts
    deviations = ops.square(runs - mean) * weights
    return mean, ops.sum(deviations, axes, keepdims=True) / counts, rows


def _average(statistics, weights=1.0):
    """Average over the runs; an empty run has no weight."""
    weights = weights * ops.ones_like(statistics[..., :1])
    axes = tuple(range(len(statistics.shape) - 1))
    total = ops.sum(statistics * weights, axes)
    return total / ops.maximum(ops.sum(weights), 1.0)
