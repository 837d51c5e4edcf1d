"""The documentation builds, and its reference is whole."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from align_keras.cli import COMMANDS
from align_keras.training import Recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a broken link fails."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q"]
        + ["--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def read(site, page):
    return (site / page / "index.html").read_text("utf-8")


def test_every_page_is_built(site):
    pages = {path.stem for path in (ROOT / "docs").rglob("*.md")} - {"index"}
    built = {path.parent.name for path in site.rglob("index.html")}
    assert pages <= built and len(pages) > 5


def test_the_reference_names_every_command_field_and_public_name(site):
    commands = read(site, "reference/commands")
    for command in COMMANDS:
        assert f"usage: align-keras {command}" in commands
    recipes = read(site, "reference/recipes")
    for field in dataclasses.fields(Recipe):
        assert f"<code>{field.name}</code>" in recipes
    python = read(site, "reference/python")
    packages = re.findall(r'<h2 id="align_keras(\w+)"', python)
    assert len(packages) > 10
    for package in packages:
        for name in importlib.import_module(f"align_keras.{package}").__all__:
            assert f'id="align_keras.{package}.{name}"' in python
