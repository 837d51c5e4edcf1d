"""The rules of curation: how one is declared, and where all of them are.

A rule is a function from the table of rows to the ids that it drops. It takes
rows as `align_keras.curation.ingest` describes them, an Ibis table, and
returns an Ibis table of one column, `row_id`, in which no id repeats. Nothing
runs here: the same definitions become DuckDB's, Spark's or BigQuery's SQL.
Only what all three know alike is used; text reaches the rules in lower case,
and everything is counted on the rows that are given.

Its keyword parameters are what a configuration sets, except three that the run
provides: with `stage` a rule stores an intermediate table under a name, which
ends recomputation; `listed` is the table made of the files that its parameters
name; `scores` is that of the rows' scores. Everything else that the run, the
SQL and `explain` must know of it stands in `@rule(...)` beside it.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Annotated

from align_keras.curation.ingest import input_column

RULES = {}
# What the run provides.
_PROVIDED = ("stage", "listed", "scores")


@dataclasses.dataclass(frozen=True)
class FileTable:
    """A table that a rule takes from files.

    Attributes:
        name: string. The stage in which it lies ends with it.
        columns: dict from names of columns to Ibis types.
        make: callable of the `ConfiguredRule`, the rows to be judged, the
            `Stages` that keep tables, a fingerprint of the rule, its files
            and the rows, and the name of the tokenizer; it returns an Ibis
            table.
    """

    name: str
    columns: dict
    make: Callable


@dataclasses.dataclass(frozen=True)
class RuleKind:
    """A declared rule.

    Attributes:
        name: string, as configurations write it.
        function: callable.
        needs: tuple of strings. The columns without which it cannot judge;
            the value of a parameter stands for `"<parameter>"`.
        column_type: string or `None`. `"number"` or `"string"`, of the column
            that the parameter `column` names.
        check: callable of the parameters, which raises a `ValueError` for
            those that do not go together.
        files: `FileTable` or `None`.
        why: callable of an `Evidence` and a dropped row, which returns what
            the rule has found in it.
        always: bool. Whether it is applied without being configured.
        account: callable of an `Evidence`, which returns a dict from words to
            numbers for the audit; or `None`.
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
    """Declare a function as a rule under its own name; see `RuleKind`."""

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
    """What numbers a parameter may be; beside its type, in `Annotated`."""

    must: str
    least: float = -math.inf
    most: float = math.inf

    def __call__(self, name, value, directory):
        if value is not None and not self.least <= value <= self.most:
            raise ValueError(f"`{name}` must {self.must}. Received: {value}")
        return value


def relative_path(name, value, directory):
    """Make a path, or each of some, relative to the configuration."""
    if isinstance(value, tuple):
        return tuple(relative_path(name, one, directory) for one in value)
    return value if not value or "://" in value else str(directory / value)


def named_paths(rule) -> dict:
    """Return the paths that a `ConfiguredRule` reads, by its parameters."""
    parameters = RULES[rule.kind].parameters.items()
    return {
        name: rule.parameters[name]
        for name, parameter in parameters
        if parameter.annotation == Paths
    }


Count = Annotated[int, Limits("not be negative", 0)]
Positive = Annotated[int, Limits("be positive", 1)]
Paths = Annotated[tuple[str, ...], relative_path]
Folder = Annotated[str, relative_path]
# Bounds; what lies outside them, or is null, is dropped.
Bound = Annotated[float | None, Limits("not be negative", 0)]
CountBound = Annotated[int | None, Limits("not be negative", 0)]
SignedBound = float | None


def needs_bound(parameters):
    """Refuse a rule of bounds without any."""
    names = ("above", "at_least", "below", "at_most")
    bounds = [name for name in names if name in parameters]
    if all(parameters[name] is None for name in bounds):
        raise ValueError(f"it needs a bound: one of {', '.join(bounds)}")


# === Reasons ===


def shows(*columns: str) -> Callable:
    """Return a `why` that tells what a row has in some columns."""

    def why(evidence, row):
        values = [f"{name} {row[name]}" for name in columns]
        return ", ".join(values).replace("None", "missing")

    return why


def shows_input(evidence, row):
    """Tell what a row has in the input's column that the rule reads."""
    name = evidence.parameters["column"]
    return f"{name} is {row[input_column(name)]}"
