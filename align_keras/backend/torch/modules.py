"""Models as torch modules."""

import functools

import keras
import torch


def _with_all_variables(method):
    @functools.wraps(method)
    def run(self, *args, **kwargs):
        self._track_variables()
        return method(self, *args, **kwargs)

    return run


class Module:
    """Gives torch the current variables of a model whenever it asks.

    KerasHub's models hide their variables from torch while they are built, and
    Keras does not notify a model of variables that its layers add later, such
    as low-rank updates: `zero_grad`, `to` or a torch optimizer would miss them.
    """

    def __init__(self, *args, **kwargs):
        held = keras.tree.flatten(list(vars(self).values()))
        super().__init__(*args, **kwargs)
        # Keep the order of the constructor, as on other backends: files number
        # the state of an optimizer by this order.
        places = {id(layer): place for place, layer in enumerate(held)}
        self._layers.sort(key=lambda x: places.get(id(x), len(places)))

    named_parameters = _with_all_variables(torch.nn.Module.named_parameters)
    state_dict = _with_all_variables(torch.nn.Module.state_dict)
    load_state_dict = _with_all_variables(torch.nn.Module.load_state_dict)
    _apply = _with_all_variables(torch.nn.Module._apply)

    def _track_variables(self):
        values = {}
        for variable in self.variables:
            # Variables of the two towers may have the same path.
            taken = variable.path in values
            suffix = f"_{len(values)}" if taken else ""
            values[variable.path + suffix] = variable.value
        self._torch_params = torch.nn.ParameterDict(values)
