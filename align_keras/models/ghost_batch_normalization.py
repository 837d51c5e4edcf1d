import keras
from keras import ops

from align_keras.models.pooling import at_least_float32


@keras.saving.register_keras_serializable(package="align_keras")
class GhostBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with the statistics of small virtual batches.

    In training, the batch is cut into runs of `virtual_batch_size` examples,
    each normalised by its own mean and variance. The moving statistics, used
    in inference, follow the average over the runs and are updated once a
    step. The public replica of ALIGN found statistics of 16 examples better
    than those of many.

    Args:
        virtual_batch_size: int. Number of examples that share statistics. A
            batch that is smaller is one run. Defaults to `16`.
        **kwargs: Arguments of `keras.layers.BatchNormalization`. The channels
            must come last and `synchronized` stays `False`.

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
        super().__init__(**kwargs)
        if virtual_batch_size < 1:
            raise ValueError(
                "`virtual_batch_size` must be at least 1. "
                f"Received: virtual_batch_size={virtual_batch_size}"
            )
        self.virtual_batch_size = virtual_batch_size

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        runs = self._split(at_least_float32(inputs))
        axes = tuple(range(1, len(runs.shape) - 1))
        mean, variance = ops.moments(runs, axes=axes, keepdims=True)
        self._update_moving(self.moving_mean, mean)
        self._update_moving(self.moving_variance, variance)
        outputs = (runs - mean) * ops.rsqrt(variance + self.epsilon)
        if self.scale:
            outputs = outputs * ops.cast(self.gamma, outputs.dtype)
        if self.center:
            outputs = outputs + ops.cast(self.beta, outputs.dtype)
        outputs = ops.reshape(outputs, ops.shape(inputs))
        return ops.cast(outputs, self.compute_dtype)

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

    def _update_moving(self, variable, statistic):
        average = ops.cast(
            ops.mean(ops.reshape(statistic, (-1, variable.shape[0])), axis=0),
            variable.dtype,
        )
        variable.assign(
            variable * self.momentum + average * (1.0 - self.momentum)
        )

    def get_config(self):
        config = super().get_config()
        config["virtual_batch_size"] = self.virtual_batch_size
        return config
