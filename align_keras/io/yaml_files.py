"""Read YAML files of plain values, with clear errors."""

from pathlib import Path
from typing import Any

import yaml

from align_keras.io.text import read_text

# Limits above what any recipe or configuration needs, to bound reading time.
MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NUMBER = 64


class _Loader(yaml.SafeLoader):
    """Reads plain values, and refuses aliases, repeated keys and long numbers.

    Ten lines of nested aliases can stand for a billion values, and
    configurations do not need them. Of repeated keys, YAML's parser would
    silently keep the last. Numbers with very many digits take long to read
    and cannot be shown in a message.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None,
                None,
                f"the alias `*{event.anchor}` is not supported: write the "
                "value out",
                event.start_mark,
            )
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"nested more than {MAX_DEPTH} levels deep",
                self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node):
        _check_number(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node):
        _check_number(node)
        return super().construct_yaml_float(node)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{name}` is given twice", key.start_mark
                )
            seen.add(name if isinstance(name, str) else id(key))
        return super().construct_mapping(node, deep)


for _kind in ("int", "float"):
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}",
        getattr(_Loader, f"construct_yaml_{_kind}"),
    )


def _check_number(node):
    if isinstance(node.value, str) and len(node.value) > MAX_NUMBER:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"a number of {len(node.value)} characters, where at most "
            f"{MAX_NUMBER} are read",
            node.start_mark,
        )


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file of plain values.

    Args:
        path: string or `pathlib.Path`. UTF-8, UTF-16 or UTF-32.

    Returns:
        The value in the file: dicts, lists, strings, numbers, bools, `None`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not YAML, is larger than 1 MiB, is nested
            deeper than 64 levels, repeats a key, or uses aliases. The message
            names the file and the place.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"`{path}` is not a recipe or configuration: it has {size} bytes, "
            f"and at most {MAX_BYTES} are read."
        )
    try:
        # The loader is a subclass of the safe one.
        return yaml.load(read_text(path), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`{path}` is not valid YAML: {reason}") from None
