"""Why a row is not in the result."""

from align_keras.curation.engine import open_engine
from align_keras.curation.ingest import input_column
from align_keras.curation.rule_parts import bit_count
from align_keras.curation.rule_parts import token_grams
from align_keras.curation.run import sees_remaining
from align_keras.curation.storage import Storage
from align_keras.io.optional import require

# Of what a rule objects to in one row.
SHOWN = 5
SHOWN_CHARACTERS = 80
# Rules whose reason is a number that the row itself has.
_MEASURES = {
    "shorter_side": ("width", "height"),
    "aspect_ratio": ("width", "height"),
    "token_count": ("num_tokens",),
    "character_count": ("text_length",),
}


def explain(output, row_id):
    """Tell which rules drop a row, and what they found in it.

    Args:
        output: string. The directory that `curate` wrote.
        row_id: string or int. The row's own id, or its `row_id`.

    Returns:
        list of dicts, one for each row of that id: `"row_id"`, `"id"`,
        `"url"`, `"text"`, and `"rules"`, a list of dicts of `"name"` and
        `"why"`, which is empty for a row that is kept.

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
    manifest = target.read_json("manifest.json")
    if manifest is None:
        raise FileNotFoundError(
            f"`{output}` holds no finished result; run `align-keras curate`."
        )
    engine = open_engine()
    try:
        return _Result(target, manifest, engine).explain(str(row_id))
    finally:
        engine.close()


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
        notes = self.stages.read_json(f"{stage}.json")
        if notes is None:
            raise FileNotFoundError(
                "The intermediate tables of this result have been discarded; "
                "run `align-keras curate` again without `--discard-stages`."
            )
        return self.engine.read(self.stages.address(stage), notes["files"])

    def table(self, rule, name):
        """What a rule stored or took from files under a name."""
        return self.read(self.manifest["tables"][f"{rule['name']}-{name}"])

    def counted(self, number):
        """The rows on which a rule took its counts."""
        rows = self.rows
        counted = self.manifest["config"]["counted_rows"]
        parameters = self.manifest["rules"][number]["parameters"]
        if sees_remaining(counted, parameters):
            for rule in self.manifest["rules"][:number]:
                drop = self.manifest["tables"][f"drop-{rule['name']}"]
                rows = rows.anti_join(self.read(drop), "row_id")
        return rows

    def explain(self, row_id):
        found = self._find(row_id)
        ids = [row["row_id"] for row in found]
        masks = self.verdicts.filter(self.verdicts.row_id.isin(ids))
        masks = {r["row_id"]: r["mask"] for r in self.engine.collect(masks)}
        return [
            {
                **{name: row[name] for name in ("row_id", "id", "url", "text")},
                "rules": [
                    {"name": rule["name"], "why": self._reason(number, row)}
                    for number, rule in enumerate(self.manifest["rules"])
                    if masks.get(row["row_id"], 0) >> number & 1
                ],
            }
            for row in sorted(found, key=lambda row: row["row_id"])
        ]

    def _find(self, row_id):
        wanted = self.rows.id == row_id
        if row_id.isdecimal() and int(row_id) < 2**63:
            wanted |= self.rows.row_id == int(row_id)
        found = self.engine.collect(self.rows.filter(wanted))
        # A row's own id goes before our number of another row.
        own = [row for row in found if row["id"] == row_id]
        if not found:
            raise ValueError(f"There is no row `{row_id}` in the input.")
        return own or found

    def _reason(self, number, row):
        """What the rule found in the row, and what it allows."""
        rule = self.manifest["rules"][number]
        parameters = {
            name: value
            for name, value in rule["parameters"].items()
            if value not in (None, "", [], ())
        }
        allowed = ", ".join(f"{n} {v}" for n, v in parameters.items())
        said = self._evidence(rule, parameters, row, number)
        return f"{said} ({allowed})" if allowed else said

    def _evidence(self, rule, parameters, row, number):
        kind = rule["kind"]
        if kind in _MEASURES:
            values = [f"{name} {row[name]}" for name in _MEASURES[kind]]
            return ", ".join(values).replace("None", "missing")
        if kind == "unusable":
            return "no text" if row["text_key"] is None else "no picture"
        if kind == "repeated_tokens":
            tokens = row["tokens"].split()
            again = len(tokens) - len(set(tokens))
            return f"{again} of {len(tokens)} unigrams came before"
        if "column" in parameters:
            value = row[input_column(parameters["column"])]
            return f"{parameters['column']} is {value}"
        return getattr(self, f"_{kind}")(rule, parameters, row, number)

    # === Other rows ===

    def _repeated_ids(self, rule, parameters, row, number):
        first = self._first(number, row, "id_key")
        return f"the id {row['id']} came before, in row {first}"

    def _repeated_pairs(self, rule, parameters, row, number):
        by_hash = parameters["picture"] == "phash"
        key = "phash" if by_hash else "image_key"
        first = self._first(number, row, key, "text_key")
        return f"row {first} has the same text and picture"

    def _first(self, number, row, *keys):
        rows = self.counted(number)
        for key in keys:
            rows = rows.filter(rows[key] == row[key])
        (found,) = self.engine.collect(rows.agg(first=rows.row_id.min()))
        return found["first"]

    def _texts_per_image(self, rule, parameters, row, number):
        count = self._members(number, row, "image_key", "text_key", parameters)
        return f"the picture `{row['url']}` has {count} texts"

    def _shared_text(self, rule, parameters, row, number):
        count = self._members(number, row, "text_key", "image_key", parameters)
        text = row["text"]
        if len(text) > SHOWN_CHARACTERS:
            text = text[:SHOWN_CHARACTERS] + "…"
        return f"{count} pictures have the text {text!r}"

    def _members(self, number, row, key, member, parameters):
        same = self.counted(number)
        same = same.filter((same[key] == row[key]) & same[member].notnull())
        distinct = parameters["count"] == "distinct"
        count = same[member].nunique() if distinct else same.count()
        return self.engine.collect(same.agg(number=count))[0]["number"]

    # === Tokens ===

    def _rare_tokens(self, rule, parameters, row, number):
        mine = self._tokens(row, tuple(parameters["ngrams"]))
        bad = mine.anti_join(self.table(rule, "frequent_tokens"), "gram")
        counts = self.table(rule, "token_counts")
        return self._occurrences(counts.semi_join(bad, "gram"))

    def _rare_words(self, rule, parameters, row, number):
        rare = self.table(rule, "rare_words")
        return self._occurrences(rare.semi_join(self._tokens(row), "gram"))

    def _forbidden_words(self, rule, parameters, row, number):
        words = self.table(rule, "words")
        bad = words.semi_join(self._tokens(row), "gram").order_by("gram")
        found = self.engine.collect(bad.limit(SHOWN))
        return ", ".join(repr(word["gram"]) for word in found)

    def _tokens(self, row, ngrams=(1,)):
        mine = self.rows.filter(self.rows.row_id == row["row_id"])
        return token_grams(mine, ngrams).select("gram").distinct()

    def _occurrences(self, counts):
        counts = counts.order_by("occurrences", "gram").limit(SHOWN)
        return "; ".join(
            f"{token['gram']!r} occurs {token['occurrences']} times"
            for token in self.engine.collect(counts)
        )

    # === Test pictures ===

    def _near_duplicate(self, rule, parameters, row, number):
        literal = require("ibis", "curation").literal
        tests = self.table(rule, "test_hashes")
        bits = bit_count(tests.phash ^ literal(row["phash"], "int64"))
        tests = tests.select("test_image", bits=bits)
        tests = tests.order_by("bits", "test_image").limit(1)
        (found,) = self.engine.collect(tests)
        return f"{found['bits']} bits from test picture `{found['test_image']}`"

    def _near_duplicate_embedding(self, rule, parameters, row, number):
        near = self.table(rule, "near_images")
        (found,) = self.engine.collect(
            near.filter(near.image_key == row["image_key"])
        )
        return (
            f"cosine {found['cosine']:.3f} to test picture "
            f"`{found['test_image']}`"
        )
