"""A model's state in parts, one on each device."""

import math
from typing import Any

import keras
from keras.distribution import TensorLayout

from align_keras.backend.jax.replicas import replicate


class ShardedState(keras.distribution.DataParallel):
    """Data parallelism in which each device holds a part of the state.

    The batch is spread over the devices as by `DataParallel`. Weights, their
    moving averages and the optimizer's slots are spread, too: of N devices,
    each holds one Nth of every array of two axes or more in which an axis is
    a multiple of N. A step puts the weights together before it uses them, and
    updates each part where it is, so that the numbers are those of a state
    that every device holds whole, but for rounding (ZeRO: [Rajbhandari et
    al., 2020](https://arxiv.org/abs/1910.02054)). For the JAX backend.

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
                "On the JAX backend alone, devices hold parts of the state. "
                "Set the environment variable KERAS_BACKEND to `jax`. "
                f"Received: backend={keras.config.backend()!r}"
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
    """Put what a step uses together on each device, where it is in parts."""
    if isinstance(keras.distribution.distribution(), ShardedState):
        return [replicate(value) for value in values]
    return values


def split_axes(shape, count, name):
    """Say along which axis an array is split among devices.

    Args:
        shape: tuple of ints.
        count: int. Number of devices.
        name: string. The axis of their mesh.

    Returns:
        A list with `name` for the longest axis that is a multiple of `count`,
        and `None` for the others; for all, where there is no such axis or
        the array has one axis alone and takes little.
    """
    axes = [None] * len(shape)
    divisible = [i for i, size in enumerate(shape) if size % count == 0]
    if len(shape) > 1 and divisible:
        axes[max(divisible, key=lambda i: shape[i])] = name
    return axes


def bytes_of_a_device(variables):
    """Sum up what a device holds of some variables, and what they are whole.

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
