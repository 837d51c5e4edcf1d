"""Shard the state of a model over devices."""

import math
from typing import Any

import keras
from keras.distribution import TensorLayout

from align_keras.backend.jax.replicas import replicate


class ShardedState(keras.distribution.DataParallel):
    """Data parallelism with the model's state sharded over the devices.

    The batch is split over the devices as by `DataParallel`. Weights, their
    moving averages and the optimizer's slots are sharded, too: of N devices,
    each holds one Nth of every array that has two or more axes, one of which
    is divisible by N. A step gathers the weights before it uses them and
    updates each shard in place, so the results equal those of a replicated
    state except for rounding (ZeRO: [Rajbhandari et al.,
    2020](https://arxiv.org/abs/1910.02054)). For the JAX backend.

    Args:
        **kwargs: See `keras.distribution.DataParallel`.

    Raises:
        ValueError: The backend is not JAX.

    Example:

    ```python
    keras.distribution.set_distribution(ShardedState())
    model = AlignDualEncoder.from_preset("align_b3_bert_mini")
    model.compile("adamw")
    model.fit(dataset)
    ```
    """

    def __init__(self, **kwargs: Any):
        if keras.config.backend() != "jax":
            raise ValueError(
                "Only the JAX backend can split the state among devices. Set "
                "the environment variable KERAS_BACKEND to `jax`. Received: "
                f"backend={keras.config.backend()!r}"
            )
        super().__init__(**kwargs)

    def get_variable_layout(self, variable: Any) -> TensorLayout:
        """Return the layout of a variable."""
        if getattr(variable, "_layout", None) is not None:
            return variable._layout
        mesh = self.device_mesh
        axes = split_axes(variable.shape, mesh.shape[0], mesh.axis_names[0])
        return TensorLayout(axes, mesh)


def gathered(values):
    """Gather sharded values on each device; return others as they are."""
    if isinstance(keras.distribution.distribution(), ShardedState):
        return [replicate(value) for value in values]
    return values


def split_axes(shape, count, name):
    """Choose the axis along which an array is sharded over devices.

    Args:
        shape: tuple of ints.
        count: int. Number of devices.
        name: string. The axis of the device mesh.

    Returns:
        A list with `name` for the longest axis that is divisible by `count`,
        and `None` for the others. All are `None` if there is no such axis, or
        if the array has only one axis and so takes little memory.
    """
    axes = [None] * len(shape)
    divisible = [i for i, size in enumerate(shape) if size % count == 0]
    if len(shape) > 1 and divisible:
        axes[max(divisible, key=lambda i: shape[i])] = name
    return axes


def bytes_of_a_device(variables):
    """Return the size of variables on one device, and their full size.

    Args:
        variables: list of variables of the JAX backend.

    Returns:
        A pair of ints, in bytes.
    """
    values = [variable.value for variable in variables]
    parts = [
        value.dtype.itemsize
        * math.prod(value.sharding.shard_shape(value.shape))
        for value in values
    ]
    return sum(parts), sum(value.nbytes for value in values)
