"""The documentation builds, and its reference is whole."""

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from align_keras.cli import COMMANDS
from align_keras.cli import make_parser
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


def test_every_command_of_a_page_is_read():
    """With what a shell makes of a glob that is not quoted: many files."""
    count, parser = 0, make_parser()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        page = path.read_text("utf-8")
        for block in re.findall(r"^```shell\n(.*?)^```", page, re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("align-keras ") and "$" not in line:
                    line = re.sub(r"(?<!\S)[\w./]*\*[\w./*]*", "a b", line)
                    parser.parse_args(shlex.split(line, comments=True)[1:])
                    count += 1
    assert count > 50
