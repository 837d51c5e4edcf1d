"""Lets Keras find the classes of this package before anyone has used one.

Keras finds a saved class in a dict that the class enters when its module is
imported. Importing this package imports no module of classes, since that would
choose Keras' backend. So the dict is replaced by one that imports them when a
name of ours is looked up, as soon as Keras itself is imported.
"""

import importlib
import importlib.util
import sys

_PLACE = "keras.src.saving.object_registration"
_PREFIX = "align_keras>"


def import_on_lookup(modules):
    """Have modules imported when Keras looks up a class of this package.

    Args:
        modules: iterable of strings, the names of the modules.
    """
    if _PLACE in sys.modules:
        _install(sys.modules[_PLACE], modules)
    else:
        sys.meta_path.insert(0, _Finder(modules))


class _Finder:
    """Waits for the module of Keras that holds the dict."""

    def __init__(self, modules):
        self._modules = modules

    def find_spec(self, name, path=None, target=None):
        if name != _PLACE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_install(module):
            execute(module)
            _install(module, self._modules)

        spec.loader.exec_module = execute_and_install
        return spec


def _install(module, modules):
    module.GLOBAL_CUSTOM_OBJECTS = _Objects(
        module.GLOBAL_CUSTOM_OBJECTS, modules
    )


class _Objects(dict):
    """A dict that imports modules when it lacks a class of ours."""

    def __init__(self, objects, modules):
        super().__init__(objects)
        self._modules = list(modules)

    def __contains__(self, name):
        if super().__contains__(name):
            return True
        if self._modules and str(name).startswith(_PREFIX):
            modules, self._modules = self._modules, []
            for module in modules:
                importlib.import_module(module)
        return super().__contains__(name)

    def get(self, name, default=None):
        return self[name] if name in self else default
