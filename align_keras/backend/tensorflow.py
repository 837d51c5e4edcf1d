"""Replicas under `tf.distribute`: every replica sees its share of a batch."""

import tensorflow as tf


def _replica_context():
    """The context of the running replica, or `None` outside of `run`."""
    return tf.distribute.get_replica_context()


def num_replicas():
    """Number of replicas that share the global batch."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index():
    """Position of the running replica, which orders the gathered rows."""
    if num_replicas() == 1:
        return 0
    return _replica_context().replica_id_in_sync_group


def all_gather(tensor):
    """Concatenate `tensor` of all replicas along the first axis.

    The gradient is the exact adjoint: the sum over replicas of the gradients
    of the gathered rows, of which each replica keeps its own.
    """
    if num_replicas() == 1:
        return tensor
    return _replica_context().all_gather(tensor, axis=0)


def densify(gradient):
    """Turn the sparse gradient of an embedding into a dense tensor."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    return gradient
