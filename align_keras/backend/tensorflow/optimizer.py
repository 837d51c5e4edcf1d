"""Optimizers of Keras on gradients that are summed over the replicas."""

import threading

from align_keras.backend.tensorflow.replicas import num_replicas

_local = threading.local()


def apply_summed(optimizer, gradients, variables):
    """Apply gradients that have been summed over the replicas already.

    Keras would clip the gradient of each replica, and then sum: unlike the
    clipped gradient of the global batch. It has no argument to leave the sum
    out, so that this method of the optimizer is replaced.
    """
    if num_replicas() > 1:
        _sum_once(getattr(optimizer, "inner_optimizer", optimizer))
    _local.summed = True
    try:
        optimizer.apply(gradients, variables)
    finally:
        _local.summed = False


def _sum_once(optimizer):
    if "_all_reduce_sum_gradients" in vars(optimizer):
        return
    reduce = optimizer._all_reduce_sum_gradients

    def unless_summed(pairs):
        return pairs if getattr(_local, "summed", False) else reduce(pairs)

    optimizer._all_reduce_sum_gradients = unless_summed
