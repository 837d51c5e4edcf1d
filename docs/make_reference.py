"""Makes the pages of the reference from the code that they describe.

MkDocs calls `on_files` before it builds the site and `on_page_markdown` for
each page, see mkdocs.yml.
"""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

# Packages whose names are public, in the order of the data's way.
PACKAGES = (
    "models",
    "losses",
    "optimizers",
    "preprocessing",
    "data",
    "curation",
    "training",
    "embedding",
    "classes",
    "evaluation",
    "serving",
    "search",
    "planning",
    "interop",
)


def on_files(files, config):
    """Add the generated pages to those of the folder."""
    pages = {
        "commands": commands(),
        "recipes": recipes(),
        "presets": presets(),
        "python": python(),
    }
    for name, content in pages.items():
        path = f"reference/{name}.md"
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links out of the folder at the repository.

    On a page in the repository they lead to the file beside it.
    """
    root = Path(config.config_file_path).parent
    up = "../" * (1 + page.file.src_uri.count("/"))

    def replace(match):
        if not (root / match[1]).exists():
            raise PluginError(
                f"`{page.file.src_uri}` links to `{up}{match[1]}`, which does "
                "not exist."
            )
        return f"]({config.repo_url}/blob/main/{match[1]}"

    return re.sub(rf"\]\({re.escape(up)}([^)#]+)", replace, markdown)


def python():
    """List the public names of each package with their docstrings."""
    lines = [
        "# Python",
        "",
        "The names of the first four packages can be imported from "
        "`align_keras` itself.",
    ]
    for name in PACKAGES:
        package = importlib.import_module(f"align_keras.{name}")
        lines += ["", f"## align_keras.{name}", "", package.__doc__ or "", ""]
        for public in package.__all__:
            lines += [
                f"::: align_keras.{name}.{public}",
                "    options:",
                "      heading_level: 3",
                "",
            ]
    return "\n".join(lines)


def commands():
    """Print the help of every command."""
    from align_keras.cli import make_parser

    lines = ["# Commands", ""]

    def add(parser, level):
        lines.extend([f"{'#' * level} {parser.prog}", "", "```text"])
        lines.extend([_help(parser), "```", ""])
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for part in action.choices.values():
                    add(part, level + 1)

    add(make_parser(), 2)
    return "\n".join(lines)


def _help(parser):
    # The width of a page, not of the terminal in which the site is built.
    parser.formatter_class = _formatter(parser.formatter_class)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        parser.print_help()
    return output.getvalue().rstrip()


def _formatter(formatter):
    return lambda prog: formatter(prog, width=80)


def recipes():
    """List the fields of a recipe, and the recipes that are shipped."""
    from align_keras.models.shipped_presets import presets_directory
    from align_keras.training import Recipe
    from align_keras.training.recipes import recipe_names

    meanings = _attributes(inspect.getdoc(Recipe))
    lines = [
        "# Recipes",
        "",
        "A recipe is a YAML file with these fields. A field without a default "
        "must be given.",
        "",
        "| field | default | meaning |",
        "|---|---|---|",
    ]
    for field in dataclasses.fields(Recipe):
        missing = field.default is dataclasses.MISSING
        default = "" if missing else f"`{field.default}`"
        lines.append(f"| `{field.name}` | {default} | {meanings[field.name]} |")
    for name in recipe_names():
        path = presets_directory() / "recipes" / f"{name}.yaml"
        lines += ["", f"## {name}", "", "```yaml"]
        lines += [path.read_text("utf-8").rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _attributes(docstring):
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(text.split()) for name, text in found}


def presets():
    """Tabulate the presets."""
    from align_keras import list_presets
    from align_keras import list_pretrained_presets

    lines = [
        "# Presets",
        "",
        "Presets by name that have weights, which others have published. They "
        "are downloaded when they are first used, and kept in Hugging Face's "
        "cache; `from_preset` of the class loads them. Results are those of "
        "their authors, in %.",
        "",
        "| preset | class | MB | licence | results |",
        "|---|---|---:|---|---|",
    ]
    for name, row in list_pretrained_presets().items():
        results = "; ".join(f"{k} {v}" for k, v in row["results"].items())
        lines.append(
            f"| [`{name}`]({row['source']}) | `{row['class_name']}` "
            f"| {row['megabytes']} | {row['license']} | {results} |"
        )
    lines += [
        "",
        "The others are architectures: an image encoder with a text encoder. "
        "Parameters are in millions, with a vocabulary of 100,000 tokens; "
        "GFLOPs are of one pair, 289×289 pixels with 64 tokens.",
        "",
        "| preset | parameters | embedding | GFLOPs |",
        "|---|---:|---:|---:|",
    ]
    for name, row in list_presets().items():
        lines.append(
            f"| `{name}` | {row['parameters'] / 1e6:.1f} "
            f"| {row['embedding_dim']} | {row['gflops']:.1f} |"
        )
    return "\n".join(lines) + "\n"
