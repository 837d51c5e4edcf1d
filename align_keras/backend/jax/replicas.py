"""Replicas under `keras.distribution`: one program sees the global batch.

The compiler splits the batch over the devices and inserts the collectives. So
a gather is the identity here, and there is one logical replica.
"""

import keras


def num_replicas():
    """Return the number of replicas: one program sees the global batch."""
    return 1


def replica_index():
    """Return the index of the running replica."""
    return 0


def all_gather(tensor):
    """Return `tensor`, which already holds the rows of all devices."""
    return tensor


def all_reduce_sum(values):
    """Return `values`, which are already those of the global batch."""
    return values


def replicate(tensor):
    """Copy the whole `tensor` to every device, if there are several.

    A loop over slices of a sharded array would wait for one device after the
    other.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return tensor
    whole = keras.distribution.TensorLayout(
        [None] * tensor.ndim, distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(tensor, whole)


def num_shards():
    """Return the number of devices that share the rows of one program."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    return sizes[distribution.batch_dim_name]
