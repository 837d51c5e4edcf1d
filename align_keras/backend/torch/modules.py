"""Models as modules of torch."""

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
    """Shows torch the variables of a model as they are when it asks.

    KerasHub's models keep them from it while they are built, and Keras does
    not tell a model of what is added to its layers later, as low-rank updates
    are: `zero_grad`, `to` or an optimizer of torch would pass over them.
    """

    def __init__(self, *args, **kwargs):
        held = keras.tree.flatten(list(vars(self).values()))
        super().__init__(*args, **kwargs)
        # In the order of a constructor, as on other backends: files number
        # the state of an optimizer by it.
        places = {id(layer): place for place, layer in enumerate(held)}
        self._layers.sort(key=lambda x: places.get(id(x), len(places)))

    named_parameters = _with_all_variables(torch.nn.Module.named_parameters)
    state_dict = _with_all_variables(torch.nn.Module.state_dict)
    load_state_dict = _with_all_variables(torch.nn.Module.load_state_dict)
    _apply = _with_all_variables(torch.nn.Module._apply)

    def _track_variables(self):
        values = {}
        for variable in self.variables:
            # Of two towers, variables may have one path.
            taken = variable.path in values
            suffix = f"_{len(values)}" if taken else ""
            values[variable.path + suffix] = variable.value
        self._torch_params = torch.nn.ParameterDict(values)
