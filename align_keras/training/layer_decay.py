"""Learning rates that decrease from the top layer of a tower to the bottom."""

import itertools
import re

from align_keras.training.freezing import TOWERS

# Blocks of a stage share a rate, even if the model lists their layers directly.
_STAGE = re.compile(r"(stage\d+)_block\d+|(block\d+)[a-z](_|$)")


def rate_multipliers(model, decay):
    """Compute the multiplier of the learning rate of each variable.

    A level of a tower is a block, such as a layer of BERT or a stage of
    EfficientNet. All layers before the first block form one level, and all
    layers after the last block another. In a tower of `n` levels, the top
    level has the multiplier `decay` and the bottom level `decay ** n`.
    Variables outside the towers, projections and temperature, have 1.

    Args:
        model: `AlignDualEncoder`.
        decay: float. Multiplier from one level to the one below it.

    Returns:
        A list of floats, one for each of `model.trainable_variables`.

    Example:

    ```python
    optimizer = AdamW(1e-4, rate_multipliers=rate_multipliers(model, 0.8))
    ```

    Reference:
        - [Howard and Ruder, 2018](https://arxiv.org/abs/1801.06146)
        - [Bao et al., 2022](https://arxiv.org/abs/2106.08254), appendix H.
    """
    factors = {}
    for name in TOWERS.values():
        levels = tower_levels(getattr(model, name))
        for height, level in enumerate(reversed(levels), start=1):
            for layer in level:
                for variable in layer.variables:
                    factors[id(variable)] = decay**height
    return [factors.get(id(v), 1.0) for v in model.trainable_variables]


def tower_levels(encoder):
    """Group the layers of an encoder into levels, lowest first.

    Args:
        encoder: `keras.Model`.

    Returns:
        list of lists of layers.
    """
    layers = [layer for layer in encoder.layers if layer.weights]
    blocks = [_is_block(layer) for layer in layers]
    if not any(blocks):
        groups = itertools.groupby(layers, key=lambda layer: layer.name)
        return [list(group) for _, group in groups]
    first = blocks.index(True)
    last = len(blocks) - blocks[::-1].index(True)

    def level(pair):
        index, layer = pair
        if index < first:
            return "before"
        if index >= last:
            return "after"
        stage = _STAGE.match(layer.name)
        return stage and (stage[1] or stage[2]) or layer.name

    groups = itertools.groupby(enumerate(layers), key=level)
    return [[layer for _, layer in group] for _, group in groups]


def _is_block(layer):
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return bool(_STAGE.match(layer.name)) or any(i.weights for i in inner)
