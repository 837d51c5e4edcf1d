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


def import_on_lookup(package):
    """Have all public names loaded when Keras looks up a class of a package.

    Args:
        package: string. The name of the package, which loads names when they
            are first used.
    """
    if _PLACE in sys.modules:
        _install(sys.modules[_PLACE], package)
    else:
        sys.meta_path.insert(0, _Finder(package))


class _Finder:
    """Waits for the module of Keras that holds the dict."""

    def __init__(self, package):
        self._package = package

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
            _install(module, self._package)

        spec.loader.exec_module = execute_and_install
        return spec


def _install(module, package):
    module.GLOBAL_CUSTOM_OBJECTS = _Objects(
        module.GLOBAL_CUSTOM_OBJECTS, package
    )


class _Objects(dict):
    """A dict that loads our classes when it lacks one of them."""

    def __init__(self, objects, package):
        super().__init__(objects)
        self._package = package

    def __contains__(self, name):
        if super().__contains__(name):
            return True
        if self._package and str(name).startswith(_PREFIX):
            package, self._package = self._package, None
            module = importlib.import_module(package)
            for public in module.__all__:
                getattr(module, public)
        return super().__contains__(name)

    def get(self, name, default=None):
        return self[name] if name in self else default
