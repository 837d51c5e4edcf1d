"""Both backends offer what `align_keras.backend` lists, under one signature."""

import ast
from pathlib import Path

import pytest

from align_keras import backend

FOLDER = Path(backend.__file__).parent


def _definitions(package, module):
    """Map the public names that a module defines to their parameters."""
    tree = ast.parse((FOLDER / package / f"{module}.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.Assign):
            found.update(dict.fromkeys(map(ast.unparse, node.targets)))
    return {n: p for n, p in found.items() if not n.startswith("_")}


@pytest.mark.parametrize("package", backend.BACKENDS)
def test_a_backend_has_the_modules_that_are_listed(package):
    modules = {path.stem for path in (FOLDER / package).glob("*.py")}
    assert modules == {"__init__", *backend.OFFERED}


@pytest.mark.parametrize("module", backend.OFFERED)
def test_both_backends_offer_the_listed_names(module):
    on_tensorflow, on_jax = (
        _definitions(package, module) for package in backend.BACKENDS
    )
    assert sorted(on_jax) == list(backend.OFFERED[module])
    # TensorFlow's replicas have a function among themselves.
    own = {"apply_where"} if module == "replicas" else set()
    assert sorted(set(on_tensorflow) - own) == list(backend.OFFERED[module])
    for name, parameters in on_jax.items():
        given = on_tensorflow[name]
        # `silu` of JAX is that of Keras, whose argument is called so too.
        assert given == parameters or name == "silu", name


def test_every_listed_name_is_found():
    assert sorted(sum(map(list, backend.OFFERED.values()), [])) == (
        backend.__all__
    )
    for name in backend.__all__:
        assert callable(getattr(backend, name)), name


def test_a_name_that_is_not_listed_is_refused():
    with pytest.raises(AttributeError, match="`convolve_all`"):
        getattr(backend, "convolve_" + "all")
