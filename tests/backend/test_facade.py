"""All backends offer what `align_keras.backend` lists, under one signature."""

import ast
from pathlib import Path

import pytest

from align_keras import backend

FOLDER = Path(backend.__file__).parent


def _definitions(*path):
    """Map the public names that a module has to their parameters.

    What several backends share, a module takes from one beside them. The
    parameters of a name that is assigned are not written there: `None`.
    """
    tree = ast.parse(FOLDER.joinpath(*path).with_suffix(".py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "class"
        elif isinstance(node, ast.Assign):
            found.update(dict.fromkeys(map(ast.unparse, node.targets)))
        elif isinstance(node, ast.ImportFrom):
            place, _, shared = node.module.rpartition(".")
            if place == backend.__name__ and shared.startswith("plain_"):
                there = _definitions(shared)
                found.update({n.name: there[n.name] for n in node.names})
    return {n: p for n, p in found.items() if not n.startswith("_")}


@pytest.mark.parametrize("package", backend.BACKENDS)
def test_a_backend_has_the_modules_that_are_listed(package):
    modules = {path.stem for path in (FOLDER / package).glob("*.py")}
    assert modules == {"__init__", *backend.OFFERED}


@pytest.mark.parametrize("module", backend.OFFERED)
def test_all_backends_offer_the_listed_names(module):
    signatures = {name: set() for name in backend.OFFERED[module]}
    for package in backend.BACKENDS:
        found = _definitions(package, module)
        if (package, module) == ("tensorflow", "replicas"):
            # TensorFlow's replicas have a function among themselves.
            del found["apply_where"]
        assert sorted(found) == list(backend.OFFERED[module]), package
        for name, parameters in found.items():
            signatures[name].add(parameters)
    for name, given in signatures.items():
        assert len(given - {None}) <= 1, name


def test_every_listed_name_is_found():
    assert sorted(sum(map(list, backend.OFFERED.values()), [])) == (
        backend.__all__
    )
    for name in backend.__all__:
        assert callable(getattr(backend, name)), name


def test_a_name_that_is_not_listed_is_refused():
    with pytest.raises(AttributeError, match="`convolve_all`"):
        getattr(backend, "convolve_" + "all")
