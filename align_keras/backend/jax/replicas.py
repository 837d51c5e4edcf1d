"""Replicas under `keras.distribution`: one program sees the global batch.

The compiler splits the batch over the devices and inserts the collectives, so
here a gather is the identity, and there is one logical replica.
"""

import keras


def num_replicas():
    """Number of replicas that share the global batch: always one program."""
    return 1


def replica_index():
    """Position of the running replica."""
    return 0


def all_gather(tensor):
    """Return `tensor`, which holds the rows of all devices already."""
    return tensor


def all_reduce_sum(values):
    """Return `values`, which are those of the global batch already."""
    return values


def replicate(tensor):
    """Place the whole of `tensor` on every device, where there are several.

    A loop over slices of an array that is spread over the devices would wait
    for one device after the other.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return tensor
    whole = keras.distribution.TensorLayout(
        [None] * tensor.ndim, distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(tensor, whole)


def num_shards():
    """Number of devices over which the rows of one program are spread."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    return sizes[distribution.batch_dim_name]
