"""Benchmarks take hours; that what they import exists is seen at once."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])


def imported(path):
    """Yield the modules of this package that a script imports, with names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] == "align_keras":
                for alias in node.names:
                    yield node.module, alias.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_scripts_import_exists(path):
    for module, name in imported(path):
        found = importlib.import_module(module)
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
