"""Replicas under `keras.distribution`: one program sees the global batch.

The compiler splits the batch over the devices and inserts the collectives, so
here a gather is the identity, and there is one logical replica.
"""

import jax

from align_keras.backend.stateless import stateless


def num_replicas():
    """Number of replicas that share the global batch: always one program."""
    return 1


def replica_index():
    """Position of the running replica."""
    return 0


def all_gather(tensor):
    """Return `tensor`, which holds the rows of all devices already."""
    return tensor


def densify(gradient):
    """Return `gradient`, which is dense already."""
    return gradient


def compile_inference(model, function):
    """Compile `function`, which runs `model` without training it.

    `keras.Model.predict` would do, but its first call takes several times as
    long as the compilation itself.

    Args:
        model: `keras.Model`, built. Its weights may change later on.
        function: callable of one array, or dict of arrays.

    Returns:
        A callable of the same input. Each new shape is compiled once.
    """
    run = jax.jit(stateless(model, function))
    return lambda inputs: run([w.value for w in model.weights], inputs)


class Trainer:
    """Nothing to add: the program is the same for any number of devices."""
