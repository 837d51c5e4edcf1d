"""Functions of higher-level packages that lower-level ones call by name.

`AlignDualEncoder.from_preset` reads weights of other libraries and loads a
preprocessor, `export` writes a SavedModel, and `train` evaluates. The code for
all of these imports the models, so the models cannot import it.
`align_keras/__init__.py` registers it here, and each function is imported when
it is first looked up.
"""

import importlib

_places = {}


def register(name, place):
    """Register a function of a higher-level package.

    Args:
        name: string. The name to look it up by.
        place: string. Its module and its name there, `"module:name"`, or a
            method of a class, `"module:Class.method"`.
    """
    _places[name] = place


def find(name):
    """Import and return the function registered under a name.

    Args:
        name: string.

    Returns:
        A callable.
    """
    module, _, path = _places[name].partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def names():
    """Return the registered names, sorted."""
    return sorted(_places)
