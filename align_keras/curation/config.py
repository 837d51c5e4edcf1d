"""Load configurations: the rules, their settings and their order."""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from pathlib import Path
from typing import Any

# Importing these modules registers the rules.
from align_keras.curation import balance_rules  # noqa: F401
from align_keras.curation import image_rules  # noqa: F401
from align_keras.curation import row_rules  # noqa: F401
from align_keras.curation import similarity_rules  # noqa: F401
from align_keras.curation import text_rules  # noqa: F401
from align_keras.curation.ingest import USUAL_COLUMNS
from align_keras.curation.rules import RULES
from align_keras.curation.rules import Folder
from align_keras.curation.rules import Paths
from align_keras.curation.text import TOKENIZERS
from align_keras.io.mirrors import local_copy
from align_keras.io.yaml_files import read_yaml

DIRECTORY = Path(__file__).parent / "configs"

_CHOICES = {
    "tokenizer": TOKENIZERS,
    "text_identity": ("normalized", "exact"),
    "counted_rows": ("raw", "remaining"),
    "repeated_ids": ("drop", "keep"),
}
# Columns of the result; `extra_columns` are added to them.
OUTPUT_COLUMNS = ("row_id", "id", "url", "text", "width", "height", "phash")
# A row's verdict is a signed 64-bit integer with one bit for each rule.
MAX_RULES = 60


@dataclasses.dataclass(frozen=True)
class ConfiguredRule:
    """One rule with its parameters.

    Attributes:
        name: string, unique in the configuration.
        kind: string, a key of `RULES`.
        parameters: dict of all parameters, converted to the right types.
        optional: bool. Whether to leave the rule out, with a warning, if the
            input lacks its column; otherwise that is an error.
    """

    name: str
    kind: str
    parameters: dict
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """A validated configuration; see docs/curation.md.

    Attributes:
        rules: tuple of `ConfiguredRule`, in the order of the audit.
        columns: dict from `id`, `url`, `text`, `width`, `height`, `phash` to
            the input's column. Columns that are not listed are found by
            their usual names.
        extra_columns: tuple of strings. Further columns to keep in the output.
        tokenizer: string. `"blanks"`, `"words"` or `"words_and_ideographs"`.
        image_identity: string. What identifies an image: `"url"`, `"phash"`
            or an extra column.
        text_identity: string. `"normalized"` or `"exact"` (Unicode's form NFC
            only).
        counted_rows: string. With `"raw"`, every rule counts all rows; with
            `"remaining"`, only those that the rules before it left.
        repeated_ids: string. `"drop"` all but the first row of an id, or
            `"keep"` them.
        max_text_characters: int. Longer texts are truncated when read.
        image_folder: string or `None`. The folder of the images, if they are
            local; they are then measured and hashed.
        allow_outside: bool. Whether names and links may lead out of that
            folder.
        scores: tuple of strings. Directories that `align-keras score` wrote.

    Raises:
        ValueError: Two settings do not go together.
    """

    rules: tuple
    columns: dict = dataclasses.field(default_factory=dict)
    extra_columns: tuple = ()
    tokenizer: str = "blanks"
    image_identity: str = "url"
    text_identity: str = "normalized"
    counted_rows: str = "raw"
    repeated_ids: str = "drop"
    max_text_characters: int = 100_000
    image_folder: str | None = None
    allow_outside: bool = False
    scores: tuple = ()

    def __post_init__(self):
        _check_columns(self)

    def further_columns(self, kind):
        """Return the input columns of a type that the rules read."""
        names = [
            rule.parameters["column"]
            for rule in self.rules
            if RULES[rule.kind].column_type == kind
        ]
        return tuple(dict.fromkeys(names))


def config_names() -> list[str]:
    """Return the names of the shipped configurations, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load_config(config: str | Path | CurationConfig) -> CurationConfig:
    """Load and validate a configuration.

    Args:
        config: string or `pathlib.Path`. The name of a shipped configuration
            (`"align"`, `"coyo"`, `"conceptual_captions"`, `"web_text"`,
            `"web_images"`), or the path of a YAML file. Paths in the file
            are relative to its directory. A `CurationConfig` is returned
            unchanged.

    Returns:
        A `CurationConfig`.

    Raises:
        FileNotFoundError: There is no such configuration.
        ValueError: A field is unknown or missing, or its value is wrong.

    Example:

    ```python
    config = load_config("align")
    ```
    """
    if isinstance(config, CurationConfig):
        return config
    path = _find(str(config))
    fields = read_yaml(path)
    try:
        return parse_config(fields, path.parent)
    except ValueError as error:
        raise ValueError(f"Configuration `{path}`: {error}") from None


def parse_config(fields: Any, directory: str | Path = ".") -> CurationConfig:
    """Validate the fields of a configuration.

    Args:
        fields: dict, as parsed from YAML.
        directory: string. The directory that paths are relative to.

    Returns:
        A `CurationConfig`.
    """
    if not isinstance(fields, dict) or not isinstance(
        fields.get("rules"), list
    ):
        raise ValueError(
            "it must be a mapping with a list `rules`. "
            f"Received: {_short(fields)}"
        )
    known = [field.name for field in dataclasses.fields(CurationConfig)]
    _check_names("field", fields, known)
    fields = dict(fields)
    rules = [_rule(entry, Path(directory)) for entry in fields.pop("rules")]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two rules are called `{name}`; give one of them another "
                "`name`."
            )
    if len(rules) > MAX_RULES:
        raise ValueError(
            f"there may be at most {MAX_RULES} rules. Received: {len(rules)}"
        )
    fields = {
        name: _field(name, value, Path(directory))
        for name, value in fields.items()
    }
    return CurationConfig(rules=tuple(rules), **fields)


def _check_columns(config):
    """Refuse two columns of the same name; engines ignore the case."""
    image = config.image_identity
    if image not in ("url", "phash", *config.extra_columns):
        raise ValueError(
            "`image_identity` must be `url`, `phash` or one of "
            f"`extra_columns`. Received: {image!r}"
        )
    taken = [*OUTPUT_COLUMNS, *(["score"] if config.scores else [])]
    for name in config.extra_columns:
        if name.lower() in taken:
            raise ValueError(
                f"`extra_columns` names `{name}`, but the output already has a "
                "column of that name; leave it out, or rename the input's "
                "column."
            )
        taken.append(name.lower())
    numbers = config.further_columns("number")
    if image in numbers:
        raise ValueError(
            f"`image_identity` names the column `{image}`, which a rule reads "
            "as a number; copy it under a second name in the input."
        )
    for name in config.further_columns("string"):
        if name in numbers:
            raise ValueError(
                f"one rule reads the column `{name}` as a number and another "
                "as a string; copy it under a second name in the input."
            )
    further = dict.fromkeys(
        (*numbers, *config.further_columns("string"), *config.extra_columns)
    )
    for name in further:
        if sum(name.lower() == other.lower() for other in further) > 1:
            raise ValueError(
                f"the column `{name}` is also written in another case; always "
                "write it as the input does."
            )


def _field(name, value, directory):
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(
                f"`{name}` must be one of {', '.join(_CHOICES[name])}. "
                f"Received: {value!r}"
            )
        return value
    if name == "columns":
        if not isinstance(value, dict):
            raise ValueError(f"`columns` must be a mapping. Received: {value}")
        _check_names("column", value, list(USUAL_COLUMNS))
        return {role: _convert(str, role, v) for role, v in value.items()}
    if name == "extra_columns":
        return _convert(tuple[str, ...], name, value)
    if name == "scores":
        return _convert(Paths, name, value, directory)
    if name == "max_text_characters":
        value = _convert(int, name, value)
        if value < 1:
            raise ValueError(f"`{name}` must be positive. Received: {value}")
        return value
    if name == "image_folder":
        if value is None:
            return None
        return _convert(Folder, name, value, directory)
    kind = bool if name == "allow_outside" else str
    return _convert(kind, name, value)


def _rule(entry, directory):
    """Parse an entry of `rules`, `{kind: {parameter: value}}` or a kind."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(
            "an entry of `rules` must look like `shorter_side: {above: 200}`. "
            f"Received: {_short(entry)}"
        )
    ((kind, given),) = entry.items()
    known = [name for name, rule in RULES.items() if not rule.always]
    _check_names("rule", [kind], known)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(
            f"the parameters of rule `{kind}` must be a mapping. "
            f"Received: {_short(given)}"
        )
    given = dict(given)
    name = given.pop("name", kind)
    optional = given.pop("optional", False)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"the `name` of rule `{kind}` must consist of letters, "
            f"digits and underscores, with no digit first. Received: {name!r}"
        )
    known = RULES[kind].parameters
    _check_names(f"parameter of rule `{kind}`", given, list(known))
    parameters = {}
    for key, parameter in known.items():
        if key in given:
            parameters[key] = _convert(
                parameter.annotation, f"{kind}.{key}", given[key], directory
            )
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"rule `{kind}` lacks its parameter `{key}`.")
        else:
            parameters[key] = parameter.default
    if RULES[kind].check is not None:
        try:
            RULES[kind].check(parameters)
        except ValueError as error:
            raise ValueError(f"rule `{kind}`: {error}.") from None
    optional = _convert(bool, f"{kind}.optional", optional)
    return ConfiguredRule(name, kind, parameters, optional)


def always_applied(config):
    """Return the rules that apply without being configured, in order."""
    names = [name for name, kind in RULES.items() if kind.always]
    if config.repeated_ids == "keep":
        names.remove("repeated_ids")
    return [ConfiguredRule(name, name, {}) for name in names]


def sees_remaining(counted_rows, parameters):
    """Return whether a rule sees only the rows that earlier rules left."""
    return "remaining" in (counted_rows, parameters.get("among"))


def _convert(kind, name, value, directory=None):
    """Check a value against a type annotation and convert it."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        value = _convert(options[0], name, value)
        for check in options[1:]:
            value = check(name, value, directory)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _convert(options[0], name, value)
    if origin is typing.Literal:
        if value in options:
            return value
        raise ValueError(
            f"`{name}` must be one of {', '.join(options)}. Received: {value!r}"
        )
    if origin is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(options[0], name, one) for one in values)
    good = isinstance(value, kind) and (
        kind is bool or not isinstance(value, bool)
    )
    if kind in (int, float) and isinstance(value, (int, float)):
        number = not isinstance(value, bool) and math.isfinite(value)
        good = number and (kind is float or value == int(value))
    if not good:
        raise ValueError(
            f"`{name}` must be of type {kind.__name__}. Received: {value!r}"
        )
    return kind(value)


def _check_names(what, given, known):
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1, 0)
            raise ValueError(
                f"unknown {what} `{name}`. Did you mean `{nearest[0]}`? "
                f"Known: {', '.join(known)}."
            )


def _short(value):
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _find(config):
    name = config.removesuffix(".yaml")
    shipped = DIRECTORY / f"{name}.yaml"
    path = Path(local_copy(config))
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = config_names()
    raise FileNotFoundError(
        f"There is no configuration `{config}`: no such file, and the shipped "
        f"ones are {', '.join(names)}."
    )
