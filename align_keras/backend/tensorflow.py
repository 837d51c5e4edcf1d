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


def compile_inference(model, function):
    """Compile `function`, which runs `model` without training it.

    Args:
        model: `keras.Model`, built. Its weights may change later on.
        function: callable of one array, or dict of arrays.

    Returns:
        A callable of the same input. Each new shape is compiled once.
    """
    return tf.function(function, autograph=False)


class Trainer:
    """What the training loop of Keras lacks across several workers.

    Keras 3.15 cannot look at a distributed batch of one local replica, and
    averages scalars of the workers along an axis that they do not have.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # All is built but the optimizer; no batch need be drawn for it.
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _make_function(self, step_function):
        strategy = self.distribute_strategy
        if strategy.extended._in_multi_worker_mode():
            return _multi_worker_function(strategy, step_function)
        return super()._make_function(step_function)


def _multi_worker_function(strategy, step_function):
    @tf.function(reduce_retracing=True)
    def one_step(data):
        outputs = strategy.run(step_function, args=(data,))
        return {
            name: strategy.reduce("MEAN", value, axis=None)
            for name, value in outputs.items()
        }

    return lambda iterator: one_step(next(iterator))
