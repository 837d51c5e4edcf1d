"""Gradient clipping under several replicas."""

import threading

from align_keras.backend.tensorflow.functional import densify
from align_keras.backend.tensorflow.replicas import num_replicas

_local = threading.local()


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
