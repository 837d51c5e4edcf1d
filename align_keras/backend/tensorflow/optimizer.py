"""What optimizers of Keras lack under several replicas."""

import threading

from align_keras.backend.tensorflow.functional import densify
from align_keras.backend.tensorflow.replicas import num_replicas

_local = threading.local()


class ReplicaClipping:
    """Clips the gradient of the global batch.

    Keras 3.15 clips what each replica derived from its share of the batch and
    sums after that, so that the limit would hold for the parts, not the whole.
    """

    def _clip_gradients(self, grads):
        return grads

    def take_sums(self):
        """Return the gradients of the last step, summed over the replicas.

        To be called in the step itself, where they are tensors of its graph.
        """
        sums, _local.sums = _local.sums, None
        return sums

    def _all_reduce_sum_gradients(self, grads_and_vars):
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        if num_replicas() > 1:
            # Each replica is traced in a thread of its own.
            _local.sums = [gradient for gradient, _ in pairs]
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue):
            return pairs
        # A sparse gradient may name a row twice; only its sum has a norm.
        gradients = [densify(gradient) for gradient, _ in pairs]
        clipped = super()._clip_gradients(gradients)
        return [
            (gradient, variable)
            for gradient, (_, variable) in zip(clipped, pairs, strict=True)
        ]
