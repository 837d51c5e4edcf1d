"""Declare the rules of curation and register them.

A rule is a function from the table of rows to the ids that it drops. It takes
an Ibis table of the rows that `align_keras.curation.ingest` describes, and
returns an Ibis table of one column, `row_id`, without repeated ids. The
function itself computes nothing: Ibis compiles the same definition to SQL for
DuckDB, Spark or BigQuery. A rule therefore uses only operations that all three
define alike. Tokens arrive in lower case, and counts are taken on the given
rows.

A configuration sets a rule's keyword parameters, except three that the run
provides: `stage` stores an intermediate table under a name, so that it is not
computed again; `listed` is the table made from the files that the parameters
name; `scores` is the table of the rows' scores. The decorator `@rule(...)`
declares everything else that the run, the SQL and `explain` need to know.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Annotated

from align_keras.curation.ingest import input_column
from align_keras.io.stores import scheme_of

RULES = {}
# Parameters that the run provides.
_PROVIDED = ("stage", "listed", "scores")


@dataclasses.dataclass(frozen=True)
class FileTable:
    """A table that a rule reads from files.

    Attributes:
        name: string. The name of the table's stage ends with it.
        columns: dict from names of columns to Ibis types.
        make: callable. Takes the `ConfiguredRule`, the rows, the `Stages`, a
            fingerprint of the rule, its files and the rows, and the name of
            the tokenizer; returns an Ibis table.
    """

    name: str
    columns: dict
    make: Callable


@dataclasses.dataclass(frozen=True)
class RuleKind:
    """A declared rule.

    Attributes:
        name: string. The name in configurations.
        function: callable. The rule itself.
        needs: tuple of strings. The columns that the rule requires;
            `"<parameter>"` stands for the value of that parameter.
        column_type: string or `None`. The type of the column that the
            parameter `column` names, `"number"` or `"string"`.
        check: callable or `None`. Takes the parameters, and raises a
            `ValueError` if they do not go together.
        files: `FileTable` or `None`.
        why: callable. Takes an `Evidence` and a dropped row, and returns what
            the rule found in the row.
        always: bool. Whether the rule is applied without being configured.
        account: callable or `None`. Takes an `Evidence`, and returns a dict
            from descriptions to numbers for the audit.
        parameters: dict from the names that a configuration may set to
            `inspect.Parameter`.
        provided: tuple of strings. Parameters that the run provides.
    """

    name: str
    function: Callable
    needs: tuple
    column_type: str | None
    check: Callable | None
    files: FileTable | None
    why: Callable
    always: bool
    account: Callable | None
    parameters: dict
    provided: tuple


def rule(
    *needs: str,
    why: Callable,
    column_type: str | None = None,
    check: Callable | None = None,
    files: FileTable | None = None,
    always: bool = False,
    account: Callable | None = None,
) -> Callable:
    """Register a function as a rule under its own name; see `RuleKind`."""

    def register(function):
        parameters = dict(inspect.signature(function).parameters)
        del parameters["rows"]
        provided = tuple(n for n in _PROVIDED if n in parameters)
        RULES[function.__name__] = RuleKind(
            function.__name__,
            function,
            needs,
            column_type,
            check,
            files,
            why,
            always,
            account,
            {k: v for k, v in parameters.items() if k not in provided},
            provided,
        )
        return function

    return register


# === Types of parameters ===


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a numeric parameter, for use in `Annotated`."""

    must: str
    least: float = -math.inf
    most: float = math.inf

    def __call__(self, name, value, directory):
        if value is not None and not self.least <= value <= self.most:
            raise ValueError(f"`{name}` must {self.must}. Received: {value}")
        return value


def relative_path(name, value, directory):
    """Resolve a path, or a tuple of paths, against a directory."""
    if isinstance(value, tuple):
        return tuple(relative_path(name, one, directory) for one in value)
    return value if not value or "://" in value else str(directory / value)


def local_folder(name, value, directory):
    """Resolve the path of a folder against a directory; refuse an address."""
    if scheme_of(value):
        raise ValueError(
            f"`{name}` must be a local folder: mount the store, or copy the "
            f"images. Received: {value!r}"
        )
    return relative_path(name, value, directory)


def preset_path(name, value, directory):
    """Resolve a preset that is a folder; leave the name or handle of one."""
    is_folder = value and (directory / value).is_dir()
    return str(directory / value) if is_folder else value


def named_paths(rule) -> dict:
    """Return the paths that a `ConfiguredRule` reads, by parameter."""
    parameters = RULES[rule.kind].parameters.items()
    return {
        name: rule.parameters[name]
        for name, parameter in parameters
        if parameter.annotation == Paths
    }


Count = Annotated[int, Limits("not be negative", 0)]
Positive = Annotated[int, Limits("be positive", 1)]
Paths = Annotated[tuple[str, ...], relative_path]
Folder = Annotated[str, local_folder]
Preset = Annotated[str, preset_path]
# Bounds of a rule.
Bound = Annotated[float | None, Limits("not be negative", 0)]
CountBound = Annotated[int | None, Limits("not be negative", 0)]
SignedBound = float | None


def needs_bound(parameters):
    """Refuse a rule that takes bounds but was given none."""
    names = ("above", "at_least", "below", "at_most")
    bounds = [name for name in names if name in parameters]
    if all(parameters[name] is None for name in bounds):
        raise ValueError(f"it needs a bound: one of {', '.join(bounds)}")


# === Reasons ===


def shows(*columns: str) -> Callable:
    """Return a `why` that shows a row's values in some columns."""

    def why(evidence, row):
        values = [f"{name} {row[name]}" for name in columns]
        return ", ".join(values).replace("None", "missing")

    return why


def shows_input(evidence, row):
    """Show a row's value in the input column that the rule reads."""
    name = evidence.parameters["column"]
    return f"{name} is {row[input_column(name)]}"
