"""What optimizers of Keras lack under several replicas."""

import threading

from align_keras.backend.tensorflow import densify
from align_keras.backend.tensorflow import num_replicas

_local = threading.local()


class ReplicaClipping:
    """Clips the gradient of the global batch.

    Keras 3.15 clips what each replica derived from its share of the batch and
    sums after that, so that the limit would hold for the parts, not the whole.
    """

    def _clip_gradients(self, grads):
        limits = self.clipnorm, self.global_clipnorm, self.clipvalue
        if num_replicas() == 1 or not any(limits):
            # A sparse gradient may name a row twice; its sum has the norm.
            grads = [densify(g) for g in grads] if any(limits) else grads
            return super()._clip_gradients(grads)
        pairs = self._all_reduce_sum_gradients([(g, None) for g in grads])
        grads = super()._clip_gradients([densify(g) for g, _ in pairs])
        _local.summed = grads
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        pairs = list(grads_and_vars)
        summed, _local.summed = getattr(_local, "summed", ()), ()
        if len(summed) == len(pairs) and all(
            pair[0] is gradient
            for pair, gradient in zip(pairs, summed, strict=True)
        ):
            return pairs
        return super()._all_reduce_sum_gradients(pairs)
