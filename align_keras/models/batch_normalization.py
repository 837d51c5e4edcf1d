import keras
from keras import ops

from align_keras import backend
from align_keras.models.pooling import at_least_float32
from align_keras.models.step_scope import current_mask

# After n updates, the moving statistics average over about the last n / PART
# batches, until `momentum` limits that number.
PART = 10.0


@keras.saving.register_keras_serializable(package="align_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose moving statistics are right from the start.

    With a constant momentum of 0.99, half of the moving statistics is still
    the initial value after 70 steps, and for a long time they reflect batches
    that went through outdated weights. Here a batch contributes
    `10 / (10 + n)` after `n` updates, until that share falls to
    `1 - momentum`, where it stays. The first batch thus replaces the initial
    values, and with a momentum of 0.99 the usual rule applies after 990
    updates. The share is a weight of the layer, so it is restored when a run
    resumes or starts from trained weights.

    The statistics leave out padding rows, which fill up the last batch of an
    epoch, and what `mask` excludes.

    Args:
        **kwargs: Arguments of `keras.layers.BatchNormalization`. The channels
            must come last.

    Call arguments:
        inputs: float tensor of shape `(batch, ..., channels)`.
        mask: bool tensor of shape `(batch, ...)`. What counts in the
            statistics. Defaults to everything.

    Example:

    ```python
    layer = BatchNormalization(synchronized=True)
    layer(keras.random.normal((64, 9, 9, 32)), training=True)
    ```

    Reference:
        - [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167)
        - [Shamir and Zhang, 2013](https://arxiv.org/abs/1212.1824), on
          averages that forget the beginning.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.moving_share = self.add_weight(
            shape=(),
            name="moving_share",
            initializer="ones",
            trainable=False,
            autocast=False,
            dtype="float32",
        )

    def settle(self):
        """Treat the moving statistics as the result of a long training.

        Call this after loading them from another source; otherwise the next
        batch would replace them.
        """
        self.moving_share.assign(0.0)

    def call(self, inputs, training=None, mask=None):
        rows = current_mask()
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        if mask is None and self.has_short_form(inputs):
            return self._run_short_form(backend.normalize_batch, inputs)
        x = at_least_float32(inputs)
        if rows is None and mask is None:
            mean, variance = self._moments(x, None)
        else:
            mean, variance = self._moments_of_some(x, rows, mask)
        self.update_moving(mean, variance)
        return self.normalize(x, mean, variance)

    def normalize_and_silu(self, inputs):
        """Normalise in training and apply `silu`, as one fused operation."""
        return self._run_short_form(backend.normalize_and_silu, inputs)

    def has_short_form(self, inputs):
        """Whether the backend can normalise in training in one operation."""
        alone = not self.synchronized or backend.num_replicas() == 1
        is_map = len(inputs.shape) == 4 and self.scale and self.center
        wide = self.variable_dtype == "float32"
        return alone and is_map and wide and current_mask() is None

    def _run_short_form(self, function, inputs):
        outputs, *statistics = function(
            inputs, self.gamma, self.beta, self.epsilon
        )
        self.update_moving(*statistics)
        return outputs

    def _moments_of_some(self, x, *masks):
        axes = tuple(range(len(x.shape) - 1))
        weights = 1.0
        for mask in masks:
            if mask is not None:
                weights = weights * broadcast_rows(mask, x)
        places = ops.size(x[0, ..., 0]) // ops.size(weights[0])
        count = ops.sum(weights) * ops.cast(places, x.dtype)
        count, total = self._of_all([count, ops.sum(x * weights, axes)])
        # A replica may hold only padding.
        count = ops.maximum(count, 1.0)
        mean = total / count
        deviations = ops.square(x - mean) * weights
        (total,) = self._of_all([ops.sum(deviations, axes)])
        return mean, total / count

    def _of_all(self, sums):
        return backend.all_reduce_sum(sums) if self.synchronized else sums

    def update_moving(self, mean, variance):
        """Move the moving statistics towards those of a batch."""
        share = ops.maximum(self.moving_share, 1.0 - self.momentum)
        for variable, statistic in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            part = ops.cast(share, variable.dtype)
            statistic = ops.cast(statistic, variable.dtype)
            variable.assign(variable * (1.0 - part) + statistic * part)
        self.moving_share.assign(share / (1.0 + share / PART))

    def scale_and_shift(self):
        """Return the scale and shift of each channel in inference."""
        mean = ops.convert_to_tensor(self.moving_mean)
        variance = ops.convert_to_tensor(self.moving_variance)
        scale = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale = scale * self.gamma
        shift = -mean * scale
        if self.center:
            shift = shift + self.beta
        return scale, shift

    def normalize(self, x, mean, variance):
        """Normalise `x` with the given statistics, then scale and shift it."""
        x = (x - mean) * ops.rsqrt(variance + self.epsilon)
        if self.scale:
            x = x * ops.cast(self.gamma, x.dtype)
        if self.center:
            x = x + ops.cast(self.beta, x.dtype)
        return ops.cast(x, self.compute_dtype)


def broadcast_rows(rows, x):
    """Reshape and cast the weights of rows so that they broadcast to `x`."""
    ones = (1,) * (len(x.shape) - len(rows.shape))
    return ops.reshape(ops.cast(rows, x.dtype), (*ops.shape(rows), *ones))
