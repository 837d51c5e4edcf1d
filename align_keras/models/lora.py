"""Low-rank updates (LoRA) of a frozen model, using Keras."""

import contextlib
import math

import keras
from keras import ops

from align_keras.models.snapshot import to_host
from align_keras.models.towers import require_floats

# Prefix of our values in a weight file; Keras numbers its own.
_KEPT = "low_rank_"
_KINDS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
)


def add_lora(model, rank):
    """Train low-rank updates instead of the towers.

    Each dense and each embedding layer in a tower gets an update of rank
    `rank`, unless the layer is frozen or one side of its matrix is no longer
    than `rank`. Everything else in the towers is frozen, including
    convolutions and normalisations. The projections and the temperature are
    trained as usual.

    Args:
        model: `AlignDualEncoder`.
        rank: int. The rank of the updates.

    Raises:
        ValueError: No layer of the towers can be updated, or the model is
            quantised.

    Reference:
        - [Hu et al., 2022](https://arxiv.org/abs/2106.09685)
    """
    require_floats(model, "given low-rank updates")
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


class LowRank:
    """Makes `enable_lora` of a KerasHub `Backbone` refuse useless calls."""

    def enable_lora(self, rank, target_layer_names=None):
        """Train low-rank updates (LoRA) of layers instead of the model.

        Everything else is frozen, except for the biases of these layers. Call
        `compile` afterwards.

        Args:
            rank: int. The rank of the updates.
            target_layer_names: list of strings. Names of the layers to
                update. Defaults to `None`, the layers that KerasHub's
                backbones choose: the queries and values of attention.

        Raises:
            ValueError: A name matches no layer that can be updated (Keras
                would silently freeze the model), or the model already has
                low-rank updates or is quantised.
        """
        require_floats(self, "given low-rank updates")
        if type(rank) is not int or rank < 1:
            raise ValueError(
                f"`rank` must be an int of at least 1. Received: rank={rank!r}"
            )
        names = target_layer_names or self.default_lora_layer_names()
        found = {
            layer.name
            for layer in self._flatten_layers()
            if hasattr(layer, "enable_lora") and layer.weights
        }
        missing = sorted(set(names) - found)
        if missing and (target_layer_names or len(missing) == len(names)):
            raise ValueError(
                "`enable_lora` finds no dense layer or table of these names, "
                "and would only freeze the model. Pass `target_layer_names`, "
                f"names of its layers. Received: {missing}"
            )
        before = lora_layers(self)
        if before:
            raise ValueError(
                "Low-rank updates can be added only once, to the whole model "
                f"or to its towers, and {len(before)} layers have them "
                "already. Save a preset, into which they are merged, load it "
                "and call `enable_lora` on that model, with all names in "
                "`target_layer_names`. Received: a model with updates of "
                f"{', '.join(_paths(before[:2]))}"
            )
        super().enable_lora(rank, target_layer_names)

    def quantize(self, *args, **kwargs):
        layers = lora_layers(self)
        if layers:
            raise ValueError(
                "The matrices of low-rank updates cannot be quantised along "
                "with the weights that they update. Save a preset, into which "
                "they are merged, load it and quantise that model. Received: a "
                f"model with updates of {', '.join(_paths(layers[:2]))}"
            )
        super().quantize(*args, **kwargs)

    def save_lora_weights(self, filepath):
        tables = [
            layer
            for layer in lora_layers(self)
            if isinstance(layer, keras.layers.Embedding)
        ]
        if tables:
            raise ValueError(
                "KerasHub's files of updates cannot hold those of embedding "
                "tables. Use `save_weights` and `load_weights`, which keep all "
                f"of them. Received: updates of {', '.join(_paths(tables))}"
            )
        super().save_lora_weights(filepath)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        # Keras merges each update into its weight, and loads zeros for both
        # factors, which would then get no gradient.
        for index, variable in enumerate(lora_variables(self)):
            store[f"{_KEPT}{index}"] = to_host(variable)

    def load_own_variables(self, store):
        names = list(store.keys())
        kept = {name for name in names if name.startswith(_KEPT)}
        self.__dict__["_low_rank_factors"] = [
            store[f"{_KEPT}{index}"][()] for index in range(len(kept))
        ]
        super().load_own_variables(
            {name: store[name] for name in names if name not in kept}
        )

    def load_weights(self, filepath, **kwargs):
        super().load_weights(filepath, **kwargs)
        factors = self.__dict__.pop("_low_rank_factors", [])
        variables = lora_variables(self)
        shapes = [tuple(v.shape) for v in variables]
        if [value.shape for value in factors] == shapes:
            for variable, value in zip(variables, factors, strict=True):
                variable.assign(value)
            for layer in lora_layers(self):
                _kernel(layer).assign(_with_update(layer, -1))
            return
        # The file has other updates, or none: start these afresh.
        for first in variables[::2]:
            first.assign(keras.initializers.HeUniform()(first.shape))


def _paths(layers):
    return [layer.path for layer in layers]


def lora_layers(model):
    """List the layers of a model that have a low-rank update."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if getattr(layer, "lora_enabled", False)
    ]


def lora_variables(model):
    """List the factors of all low-rank updates in a model."""
    return [
        variable
        for layer in lora_layers(model)
        for variable in layer.variables
        if "lora_" in variable.name
    ]


@contextlib.contextmanager
def without_lora(model):
    """Make layers save their original weights, without the updates."""
    layers = lora_layers(model)
    try:
        for layer in layers:
            layer.lora_enabled = False
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


@contextlib.contextmanager
def described_without_lora(model):
    """Make layers return the configs that they had without updates.

    Keras merges the updates into the weights that it saves, but some layers
    put their rank into their config.
    """
    ranks = [(layer, layer.lora_rank) for layer in lora_layers(model)]
    try:
        for layer, _ in ranks:
            layer.lora_rank = None
        yield
    finally:
        for layer, rank in ranks:
            layer.lora_rank = rank


@contextlib.contextmanager
def merged_lora(model):
    """Merge low-rank updates into the weights temporarily.

    Weights saved within this context load into a model without updates.
    Afterwards the model is as before, bit for bit.

    Args:
        model: `AlignDualEncoder`.
    """
    layers = lora_layers(model)
    kept = [(to_host(_kernel(layer)), layer.lora_rank) for layer in layers]
    merged = [to_host(_with_update(layer)) for layer in layers]
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
    """Return the variable of a layer to which the update is added."""
    if isinstance(layer, keras.layers.Embedding):
        return layer._embeddings
    return layer._kernel


def _with_update(layer, factor=1):
    """Add the update, times `factor`, to the weight, in the weight's dtype."""
    require_floats(layer, "given low-rank updates")
    kind = "kernel"
    if isinstance(layer, keras.layers.Embedding):
        kind = "embeddings"
    first, second = (getattr(layer, f"lora_{kind}_{factor}") for factor in "ab")
    scale = factor * layer.lora_alpha / layer.lora_rank
    weight = _kernel(layer)
    update = scale * ops.matmul(first, second)
    return ops.cast(weight + ops.cast(update, weight.dtype), weight.dtype)
