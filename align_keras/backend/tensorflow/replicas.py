"""Replicas under `tf.distribute`: each replica sees its share of a batch."""

import tensorflow as tf


def _replica_context():
    """Return the context of the running replica; `None` outside of `run`."""
    return tf.distribute.get_replica_context()


def num_replicas():
    """Return the number of replicas that share the global batch."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index():
    """Return the index of the running replica, which orders gathered rows."""
    if num_replicas() == 1:
        return 0
    return _replica_context().replica_id_in_sync_group


def all_gather(tensor):
    """Concatenate the `tensor` of all replicas along the first axis.

    The gradient is the exact adjoint: the gradients of the gathered rows are
    summed over the replicas, and each replica keeps those of its own rows.
    """
    if num_replicas() == 1:
        return tensor
    return _replica_context().all_gather(tensor, axis=0)


def all_reduce_sum(values):
    """Add up a list of dense tensors over all replicas."""
    if num_replicas() == 1:
        return values
    sums = list(values)
    # Tensors of the same dtype are reduced together.
    for dtype in dict.fromkeys(value.dtype for value in values):
        places = [i for i, v in enumerate(values) if v.dtype == dtype]
        reduced = _replica_context().all_reduce(
            "SUM", [values[i] for i in places]
        )
        for i, value in zip(places, reduced, strict=True):
            sums[i] = value
    return sums


def replicate(tensor):
    """Return `tensor`, which is already whole on every replica."""
    return tensor


def num_shards():
    """Return the number of devices that share the rows of one program."""
    return 1


def apply_where(condition, function, arguments):
    """Call `function` on all replicas if the condition holds.

    Args:
        condition: bool scalar tensor, the same on all replicas.
        function: callable of `arguments` that updates variables.
        arguments: tuple of structures of tensors of this replica.
    """
    on_tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    if on_tpu or not tf.distribute.has_strategy():
        _call_where(condition, lambda: function(*arguments))
        return

    # Other strategies trace replicas in threads, which can only synchronize
    # outside of branches.
    def on_all(strategy, condition, arguments):
        first = strategy.experimental_local_results(condition)[0]
        _call_where(first, lambda: strategy.run(function, arguments))

    _replica_context().merge_call(on_all, args=(condition, arguments))


def _call_where(condition, function):
    def call():
        function()
        return True

    tf.cond(condition, call, lambda: False)
