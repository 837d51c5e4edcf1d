"""Let Keras find the saved classes of this package without importing them.

Keras looks up a saved class in a dict, where the class registers itself when
its module is imported. Importing this package imports no such module, because
that would choose the Keras backend. So as soon as Keras is imported, this
module replaces the dict by one that imports our classes when Keras looks up
one of their names.
"""

import importlib
import importlib.util
import sys

_PLACE = "keras.src.saving.object_registration"
_PREFIX = "align_keras>"


def import_on_lookup(package):
    """Load all public names when Keras looks up a class of a package.

    Args:
        package: string. The name of the package, which loads its public names
            lazily.
    """
    if _PLACE in sys.modules:
        _install(sys.modules[_PLACE], package)
    else:
        sys.meta_path.insert(0, _Finder(package))


class _Finder:
    """Import hook that waits for the Keras module that holds the dict."""

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
    """A dict that imports our classes when one of them is missing."""

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
