"""Lower the training step of a model that has shapes but no values."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from align_keras.backend.sharded_state import ShardedState
from align_keras.backend.sharded_state import split_axes
from align_keras.keras_hub_internals import abstract_variables
from align_keras.planning.flops import count_flops
from align_keras.training.assembly import build_network
from align_keras.training.assembly import compile_model
from align_keras.training.recipes import Recipe

AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A step that is ready to be compiled.

    Attributes:
        lowered: `jax.stages.Lowered`.
        parameters: int. Number of trainable parameters.
        vocabulary_size: int or `None`. Number of tokens; `None` if it is the
            preset's, and its text encoder does not tell.
        bytes: dict. Bytes that a device holds of `"weights"`, `"optimizer"`
            and `"batch"`. Weights include the statistics of normalisations.
        model_flops: int. Floating-point operations of the matrix products and
            convolutions of a step over all devices, taken as three times those
            of the forward pass.
        repeated_flops: int. The same operations in the iterations of loops
            after the first, which the compiler does not count.
        repeats: float. Ratio of these operations in the whole step to those
            that the compiler counts.
    """

    lowered: Any
    parameters: int
    vocabulary_size: int | None
    bytes: dict[str, int]
    model_flops: int
    repeated_flops: int
    repeats: float


def lower_step(
    model: str | Callable,
    recipe: Recipe,
    devices: list,
    vocabulary_size: int | None = None,
    shard_state: bool = False,
) -> LoweredStep:
    """Lower the step that `align-keras train` runs on the given devices.

    The model, its optimizer and the batch are shapes without values. The batch
    is sharded over the devices.

    Args:
        model: string or callable. See `align_keras.training.train`.
        recipe: `Recipe`. Its batch is the global batch over all devices.
        devices: list of JAX devices. They need not be present.
        vocabulary_size: int. Number of tokens. Defaults to `None`: that of
            the preset.
        shard_state: bool. Whether to shard the weights and the optimizer's
            state over the devices, see `align_keras.training.ShardedState`.
            Defaults to `False`: each device holds all of them.

    Returns:
        A `LoweredStep`.
    """
    with abstract_variables():
        network = build_network(
            model, recipe, vocabulary_size, len(devices), load_weights=False
        )
    compile_model(network, recipe)
    places = np.array(devices)
    kind = ShardedState if shard_state else keras.distribution.DataParallel
    distribution = kind(
        device_mesh=keras.distribution.DeviceMesh(places.shape, [AXIS], places),
        auto_shard_dataset=False,
    )
    mesh = distribution.device_mesh.backend_mesh
    with distribution.scope(), abstract_variables():
        network.optimizer.build(network.trainable_variables)
        state, batch = _abstract(network, recipe, mesh, shard_state)
        whole = NamedSharding(mesh, PartitionSpec())
        step = jax.jit(
            network.train_step,
            donate_argnums=0,
            out_shardings=(whole, jax.tree.map(lambda x: x.sharding, state)),
        )
        traced = step.trace(state, (batch,))
        lowered = traced.lower()
        forward = jax.make_jaxpr(_forward(network))(state[:2], batch)
    trainable, others, optimizer, _ = state
    whole, once = (count_flops(traced.jaxpr, loops) for loops in (True, False))
    return LoweredStep(
        lowered=lowered,
        parameters=sum(math.prod(x.shape) for x in trainable),
        vocabulary_size=getattr(
            network.text_encoder, "vocabulary_size", vocabulary_size
        ),
        bytes={
            "weights": _bytes_of(trainable + others),
            "optimizer": _bytes_of(optimizer),
            "batch": _bytes_of(batch.values()),
        },
        model_flops=3 * count_flops(forward),
        repeated_flops=whole - once,
        repeats=whole / once,
    )


def _abstract(model, recipe, mesh, shard_state):
    """Give each part of the state and the batch a shape and a sharding."""
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def describe(variable):
        sharding = whole
        if shard_state:
            axes = split_axes(variable.shape, mesh.size, AXIS)
            sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(
            variable.shape, variable.dtype, sharding=sharding
        )

    state = (
        [describe(v) for v in model.trainable_variables],
        [describe(v) for v in model.non_trainable_variables],
        [describe(v) for v in model.optimizer.variables],
        [describe(v) for v in model.metrics_variables],
    )
    size, length = recipe.image_size, recipe.sequence_length
    shapes = {
        "images": ((size, size, 3), "float32"),
        "token_ids": ((length,), "int32"),
        "padding_mask": ((length,), "int32"),
    }
    batch = {
        name: jax.ShapeDtypeStruct(
            (recipe.batch_size, *shape), dtype, sharding=rows
        )
        for name, (shape, dtype) in shapes.items()
    }
    return state, batch


def _bytes_of(tensors):
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in tensors
    )


def _forward(model):
    def forward(state, batch):
        variables = model.trainable_variables, model.non_trainable_variables
        mapping = [
            pair
            for known, values in zip(variables, state, strict=True)
            for pair in zip(known, values, strict=True)
        ]
        with keras.StatelessScope(mapping):
            # At inference, texts have outputs that the compiler removes.
            return model.embed(batch, training=True)

    return forward
