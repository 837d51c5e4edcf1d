"""Gradient clipping under several replicas, and fewer operations in a graph."""

import functools
import threading

from keras import ops

from align_keras.backend.tensorflow.functional import densify
from align_keras.backend.tensorflow.functional import traced_once
from align_keras.backend.tensorflow.replicas import num_replicas

_local = threading.local()


class AdamStep:
    """Does the step of `keras.optimizers.Adam` in one call for each variable.

    Keras adds some forty operations for each variable to the graph.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable from its gradient."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        formula = _change(self.beta_1, self.beta_2, self.epsilon)
        mean, square, change = formula(
            ops.cast(densify(gradient), variable.dtype),
            ops.convert_to_tensor(momentum),
            ops.convert_to_tensor(velocity),
            ops.cast(learning_rate, variable.dtype),
            ops.convert_to_tensor(self.iterations),
        )
        self.assign(momentum, mean)
        self.assign(velocity, square)
        self.assign_sub(variable, change)

    def _apply_weight_decay(self, variables):
        # Keras adds operations also for the variables that do not decay.
        if self.weight_decay is not None:
            values = [getattr(v, "value", v) for v in variables]
            decayed = [v for v in values if self._use_weight_decay(v)]
            super()._apply_weight_decay(decayed)


@functools.cache
def _change(beta_1, beta_2, epsilon):
    """Return a function to the new moments and what to subtract."""

    def change(gradient, momentum, velocity, rate, steps):
        mean = momentum + (gradient - momentum) * (1 - beta_1)
        square = ops.square(gradient) - velocity
        square = velocity + square * (1 - beta_2)
        step = ops.cast(steps + 1, gradient.dtype)
        unbias_1, unbias_2 = (
            1 - ops.power(ops.cast(beta, step.dtype), step)
            for beta in (beta_1, beta_2)
        )
        change = mean * (rate * ops.sqrt(unbias_2) / unbias_1)
        return mean, square, change / (ops.sqrt(square) + epsilon)

    return traced_once(change)


class ReplicaClipping:
    """Clips the gradient of the global batch.

    Keras 3.15 clips the gradient of each replica's share of the batch and sums
    afterwards, so the limit would apply to the parts and not to the sum.
    """

    def _clip_gradients(self, grads):
        return grads

    def take_sums(self):
        """Return the gradients of the last step, summed over the replicas.

        Call it in the step itself: the gradients are tensors of its graph.
        """
        sums, _local.sums = _local.sums, None
        return sums

    def _all_reduce_sum_gradients(self, grads_and_vars):
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        if num_replicas() > 1:
            # TensorFlow traces each replica in its own thread.
            _local.sums = [gradient for gradient, _ in pairs]
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue):
            return pairs
        # A sparse gradient may hold a row twice; sum them before the norm.
        gradients = [densify(gradient) for gradient, _ in pairs]
        clipped = super()._clip_gradients(gradients)
        return [
            (gradient, variable)
            for gradient, (_, variable) in zip(clipped, pairs, strict=True)
        ]
