"""Make notebooks of the tutorials.

    python docs/make_notebooks.py

A page is cut at its blocks of `shell`, which become cells to run. Links and
plots are those of the site.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
NOTEBOOKS = ROOT / "examples" / "notebooks"
SITE = "https://align-keras.github.io/align-keras"

_BLOCK = re.compile(r"^```shell\n(.*?)^```\n", re.M | re.S)


def notebook_of(page):
    """Return a page as a notebook.

    Args:
        page: string, Markdown.

    Returns:
        A dict, as a file of Jupyter's holds it.
    """
    cells = []
    # What stands between blocks has even places, what a block holds odd ones.
    for place, part in enumerate(_BLOCK.split(page)):
        if place % 2:
            lines = part.replace("\\\n", "\0").splitlines()
            source = "\n".join(f"!{line}" for line in lines)
            cells.append(_cell("code", source.replace("\0", "\\\n")))
        elif part.strip():
            cells.append(_cell("markdown", _absolute(part.strip())))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            }
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind, source):
    cell = {"cell_type": kind, "metadata": {}}
    cell["source"] = source.splitlines(keepends=True)
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def _absolute(text):
    def link(found):
        folder, name, anchor = found.groups()
        place = name if folder else f"tutorials/{name}"
        return f"]({SITE}/{place}/{anchor or ''})"

    text = re.sub(r"\]\(\.\./(\w+\.png)\)", rf"]({SITE}/\1)", text)
    return re.sub(r"\]\((\.\./)?(\w+)\.md(#[\w-]+)?\)", link, text)


if __name__ == "__main__":
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    for path in sorted(TUTORIALS.glob("*.md")):
        notebook = notebook_of(path.read_text("utf-8"))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (NOTEBOOKS / f"{path.stem}.ipynb").write_text(text, "utf-8")
