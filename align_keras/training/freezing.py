"""Freeze weights of a model by name."""

import difflib
import re

import keras

TOWERS = {"image": "image_encoder", "text": "text_encoder"}


def named_variables(model):
    """Name every variable by its path in the model.

    Args:
        model: `AlignDualEncoder`.

    Returns:
        A list of pairs in the order of `model.variables`: a path such as
        `"text_encoder/transformer_layer_0/…/kernel"`,
        `"text_projection/kernel"` or `"contrastive_head/log_temperature"`;
        and the `keras.Variable`.
    """
    towers = {
        id(variable): name
        for name in TOWERS.values()
        for variable in getattr(model, name).variables
    }
    pairs = []
    for variable in model.variables:
        tower = towers.get(id(variable))
        path = variable.path.removeprefix(f"{tower}/")
        pairs.append((f"{tower}/{path}" if tower else path, variable))
    return pairs


def freeze(model, patterns):
    """Freeze weights, so that training does not change them.

    A tower that is frozen as a whole runs in inference mode, and no gradient
    is computed for it. A frozen batch normalisation layer also runs in
    inference mode, on its own or in a block; dropout in a frozen block stays
    active.

    Args:
        model: `AlignDualEncoder`.
        patterns: string or list of strings. `"image"`, `"text"`, or regular
            expressions that are searched for in the paths that
            `named_variables` gives.

    Raises:
        ValueError: A pattern matches no path of a trainable variable, or
            nothing is left to train.

    Example:

    ```python
    freeze(model, ["image", r"text_encoder/transformer_layer_[0-3]/"])
    ```
    """
    named = [(path, v) for path, v in named_variables(model) if v.trainable]
    frozen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        frozen |= _matches(pattern, named)
    if len(frozen) == len(named):
        raise ValueError(
            "`freeze` leaves nothing to train: its patterns match all "
            f"{len(named)} variables. Received: freeze={patterns!r}"
        )
    # Collect the layers first: freezing one also freezes those within it.
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if layer.trainable_variables
        and all(id(v) in frozen for v in layer.trainable_variables)
    ]
    for layer in layers:
        layer.trainable = False
    for _, variable in named:
        if id(variable) in frozen:
            variable.trainable = False


def _matches(pattern, named):
    if pattern in TOWERS:
        prefix = f"{TOWERS[pattern]}/"
        return {id(v) for path, v in named if path.startswith(prefix)}
    found = {id(v) for path, v in named if re.search(pattern, path)}
    if found:
        return found
    # Suggest names of layers, which people usually mean, as well as full paths,
    # which are closer to long patterns.
    names = {part for path, _ in named for part in path.split("/")}
    names |= {path for path, _ in named}
    near = difflib.get_close_matches(pattern, sorted(names), n=3, cutoff=0)
    raise ValueError(
        f"`freeze` has the pattern {pattern!r}, which matches the path of no "
        "trainable variable. The nearest are "
        f"{', '.join(f'`{name}`' for name in near)}."
    )


def freeze_statistics(model):
    """Make batch normalisation run in inference mode.

    Its mean, variance, scale and shift stay those of the weights that it
    starts from.

    Args:
        model: `AlignDualEncoder`.

    Returns:
        int. The number of batch normalisation layers.
    """
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        layer.trainable = False
    return len(layers)
