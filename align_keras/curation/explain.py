"""Explain why a row is not in the result."""

from pathlib import Path

from align_keras.curation.config import RULES
from align_keras.curation.config import sees_remaining
from align_keras.curation.engine import open_engine
from align_keras.curation.rule_parts import token_grams
from align_keras.curation.stages import read_notes
from align_keras.curation.stages import read_stage
from align_keras.curation.storage import Storage

# At most this many of a row's offending tokens, words or entries are listed.
SHOWN = 5


def explain(output: str | Path, row_id: str | int) -> list[dict]:
    """List the rules that drop a row, and what they found in it.

    Args:
        output: string. The directory that `curate` wrote.
        row_id: string or int. The row's own id, or its `row_id`.

    Returns:
        list of dicts, one for each row with that id: `"row_id"`, `"id"`,
        `"url"`, `"text"`; if the run has scores, `"score"`, a float or
        `None`; and `"rules"`, a list of dicts of `"name"` and `"why"`, which
        is empty for a row that is kept.

    Raises:
        FileNotFoundError: `output` holds no finished result, or its
            intermediate tables have been discarded.
        ValueError: There is no such row.

    Example:

    ```python
    explain("clean", 1203)[0]["rules"]
    ```
    """
    target = Storage(output)
    manifest = read_manifest(target)
    if manifest is None:
        raise FileNotFoundError(
            f"`{output}` holds no finished result; run `align-keras curate`."
        )
    engine = open_engine()
    try:
        return _Result(target, manifest, engine).explain(str(row_id))
    finally:
        engine.close()


def read_manifest(target):
    """Read the manifest that `curate` wrote; `None` if there is none.

    Raises:
        ValueError: The manifest is damaged; the message names the file and
            the field.
    """
    return target.read_object(
        "manifest.json",
        _MANIFEST,
        "manifest of curated rows",
        "Remove it and the files next to it, and run `align-keras curate` "
        "again.",
    )


# The fields of the manifest that are used here.
_MANIFEST = {
    "stages": str,
    "rows_stage": str,
    "files": {"dropped": [str]},
    "rules": [{"name": str, "kind": str, "parameters": dict}],
    "tables": {"*": str},
    "config": {"counted_rows": str},
}


class _Result:
    """The tables of a finished run."""

    def __init__(self, target, manifest, engine):
        self.engine = engine
        self.manifest = manifest
        place = manifest["stages"]
        remote = "://" in place
        self.stages = Storage(place if remote else target.address(place))
        self.rows = self.read(manifest["rows_stage"])
        self.verdicts = engine.read(target.root, manifest["files"]["dropped"])

    def read(self, stage):
        notes = read_notes(self.stages, stage)
        if notes is None:
            raise FileNotFoundError(
                "The intermediate tables of this result are not in "
                f"`{self.stages.root}`: they have been discarded, or are on "
                "another machine. Explain it there, or run `align-keras "
                "curate` again without `--discard-stages`."
            )
        return read_stage(self.stages, self.engine, notes)

    def explain(self, row_id):
        found = self._find(row_id)
        ids = [row["row_id"] for row in found]
        masks = self.verdicts.filter(self.verdicts.row_id.isin(ids))
        masks = {r["row_id"]: r["mask"] for r in self.engine.collect(masks)}
        return [
            {
                **{name: row[name] for name in ("row_id", "id", "url", "text")},
                **self._score(row),
                "rules": [
                    {"name": rule["name"], "why": self._reason(number, row)}
                    for number, rule in enumerate(self.manifest["rules"])
                    if masks.get(row["row_id"], 0) >> number & 1
                ],
            }
            for row in sorted(found, key=lambda row: row["row_id"])
        ]

    def _score(self, row):
        if "row_scores" not in self.manifest["tables"]:
            return {}
        return {"score": Evidence(self, 0).score(row)}

    def _find(self, row_id):
        wanted = self.rows.id == row_id
        if row_id.isdecimal() and int(row_id) < 2**63:
            wanted |= self.rows.row_id == int(row_id)
        found = self.engine.collect(self.rows.filter(wanted))
        # A row's own id takes precedence over another row's `row_id`.
        own = [row for row in found if row["id"] == row_id]
        if not found:
            raise ValueError(f"There is no row `{row_id}` in the input.")
        return own or found

    def _reason(self, number, row):
        """Say what the rule found in the row, and what it allows."""
        rule = self.manifest["rules"][number]
        found = RULES[rule["kind"]].why(Evidence(self, number), row)
        allowed = ", ".join(
            f"{name} {value}"
            for name, value in rule["parameters"].items()
            if value not in (None, "", [], ())
        )
        return f"{found} ({allowed})" if allowed else found


class Evidence:
    """The tables of a run, as a rule's `why` and `account` see them.

    Args:
        result: the tables of a run.
        number: int. The rule's position in the run.

    Attributes:
        parameters: dict. The parameters of the rule.
        shown: int. How many items a reason may list.
    """

    def __init__(self, result, number):
        self._result = result
        self._number = number
        self._rule = result.manifest["rules"][number]
        self.parameters = self._rule["parameters"]
        self.shown = SHOWN
        self.collect = result.engine.collect

    def table(self, name: str):
        """Return a table that the rule stored or read from files."""
        tables = self._result.manifest["tables"]
        return self._result.read(tables[f"{self._rule['name']}-{name}"])

    def scores(self):
        """Return the scores of all rows, a table of `row_id` and `score`."""
        return self._result.read(self._result.manifest["tables"]["row_scores"])

    def score(self, row: dict) -> float | None:
        """Return the score of a row, or `None` if it has none."""
        scores = self.scores()
        found = self.collect(scores.filter(scores.row_id == row["row_id"]))
        return found[0]["score"] if found else None

    def counted(self):
        """Return the rows that the rule counted."""
        manifest, rows = self._result.manifest, self._result.rows
        if sees_remaining(manifest["config"]["counted_rows"], self.parameters):
            for rule in manifest["rules"][: self._number]:
                drop = manifest["tables"][f"drop-{rule['name']}"]
                rows = rows.anti_join(self._result.read(drop), "row_id")
        return rows

    def first(self, row: dict, *keys: str) -> int:
        """Return the id of the first row with equal values in some columns."""
        rows = self.counted()
        for key in keys:
            rows = rows.filter(rows[key] == row[key])
        (found,) = self.collect(rows.agg(first=rows.row_id.min()))
        return found["first"]

    def members(self, row: dict, key: str, member: str) -> int:
        """Count the members of a row's key as the rule's `count` demands."""
        same = self.counted()
        same = same.filter((same[key] == row[key]) & same[member].notnull())
        distinct = self.parameters["count"] == "distinct"
        count = same[member].nunique() if distinct else same.count()
        return self.collect(same.agg(number=count))[0]["number"]

    def tokens(self, row: dict, ngrams: tuple[int, ...] = (1,)):
        """Return the tokens of a row, a table of `gram`."""
        rows = self._result.rows
        mine = rows.filter(rows.row_id == row["row_id"])
        return token_grams(mine, ngrams).select("gram").distinct()

    def occurrences(self, counts) -> str:
        """Describe the rarest of some tokens, and how often they occur."""
        counts = counts.order_by("occurrences", "gram").limit(self.shown)
        return "; ".join(
            f"{token['gram']!r} occurs {token['occurrences']} times"
            for token in self.collect(counts)
        )
