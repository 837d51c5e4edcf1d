"""Let timm be imported where torchvision is not: its networks need none of it.

Call `install()` before importing timm. Every name of torchvision is then an
empty class.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class _Anything(type):
    def __getattr__(cls, name):
        return _make(name)

    def __call__(cls, *args, **kwargs):
        return cls


def _make(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        return _make(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        module.__version__ = "0.0.0"


def install():
    """Install the empty package, unless there is a real one."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
