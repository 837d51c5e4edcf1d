"""Low-rank updates of a frozen model, through Keras."""

import contextlib
import math

import keras
from keras import ops

_KINDS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
)


def add_lora(model, rank):
    """Train low-rank updates in the place of the towers.

    Each dense layer and each table of vectors in a tower gets an update of
    `rank`, unless it is frozen or one of its sides is no longer than `rank`.
    All else in the towers is frozen, convolutions and normalisations
    included; projections and temperature are trained as they are.

    Args:
        model: `AlignDualEncoder`.
        rank: int.

    Raises:
        ValueError: No layer of the towers can have an update.

    Reference:
        - [Hu et al., 2022](https://arxiv.org/abs/2106.09685)
    """
    adapted = 0
    for tower in (model.image_encoder, model.text_encoder):
        inner = tower._flatten_layers()
        layers = [layer for layer in inner if _fits(layer, rank)]
        for variable in tower.variables:
            variable.trainable = False
        for layer in inner:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        for layer in layers:
            layer.enable_lora(rank)
        if not layers:
            tower.trainable = False
        adapted += len(layers)
    if not adapted:
        raise ValueError(
            "`lora_rank` finds no layer to train: the towers hold no dense "
            "layer or table that is both trainable and wider than the rank. "
            f"Received: lora_rank={rank}. Choose a lower rank, or freeze less."
        )


def _fits(layer, rank):
    if not isinstance(layer, _KINDS):
        return False
    kernel = _kernel(layer)
    *rows, columns = kernel.shape
    return kernel.trainable and min(math.prod(rows), columns) > rank


def lora_layers(model):
    """List the layers of a model that have a low-rank update."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if getattr(layer, "lora_enabled", False)
    ]


def lora_variables(model):
    """List the factors of all low-rank updates of a model."""
    return [
        variable
        for layer in lora_layers(model)
        for variable in layer.variables
        if "lora_" in variable.name
    ]


@contextlib.contextmanager
def without_lora(model):
    """Have layers save what they started from, without their updates."""
    layers = lora_layers(model)
    try:
        for layer in layers:
            layer.lora_enabled = False
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


@contextlib.contextmanager
def merged_lora(model):
    """Turn low-rank updates into ordinary weights, for a while.

    What is saved within the context loads into a model without updates.
    Afterwards all is as before, bit for bit.

    Args:
        model: `AlignDualEncoder`.
    """
    layers = lora_layers(model)
    kept = [
        (ops.convert_to_numpy(_kernel(layer)), layer.lora_rank)
        for layer in layers
    ]
    merged = [ops.convert_to_numpy(_merged(layer)) for layer in layers]
    try:
        for layer, value in zip(layers, merged, strict=True):
            _kernel(layer).assign(value)
            layer.lora_enabled, layer.lora_rank = False, None
        yield
    finally:
        for layer, (value, rank) in zip(layers, kept, strict=True):
            _kernel(layer).assign(value)
            layer.lora_enabled, layer.lora_rank = True, rank


def _kernel(layer):
    """The variable of a layer that an update is added to."""
    if isinstance(layer, keras.layers.Embedding):
        return layer._embeddings
    return layer._kernel


def _merged(layer):
    """Weight and update together, in the precision of the weight."""
    kind = "kernel"
    if isinstance(layer, keras.layers.Embedding):
        kind = "embeddings"
    first, second = (getattr(layer, f"lora_{kind}_{factor}") for factor in "ab")
    scale = layer.lora_alpha / layer.lora_rank
    weight = _kernel(layer)
    update = scale * ops.matmul(first, second)
    return ops.cast(weight + ops.cast(update, weight.dtype), weight.dtype)
