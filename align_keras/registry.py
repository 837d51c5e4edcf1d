"""What a lower floor calls on without importing it.

`AlignDualEncoder.from_preset` reads weights of other libraries and loads a
preprocessor, `export` writes a SavedModel, and `train` evaluates: all of these
are built upon the models. `align_keras/__init__.py` enters them here, and each
is imported when it is first called for.
"""

import importlib

_places = {}


def register(name, place):
    """Enter a function of a higher floor.

    Args:
        name: string. What lower floors ask for.
        place: string. Its module and its name there, `"module:name"`; the name
            may be that of a method of a class, `"module:Class.method"`.
    """
    _places[name] = place


def find(name):
    """Return the function that was entered under a name.

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
    """Return the names that were entered, sorted."""
    return sorted(_places)
