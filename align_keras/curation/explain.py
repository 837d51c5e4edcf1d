"""Why a row is not in the result, and the rules as SQL."""

from align_keras.curation.config import load_config
from align_keras.curation.engine import open_engine
from align_keras.curation.extras import require
from align_keras.curation.ingest import rows_schema
from align_keras.curation.rules import most_frequent
from align_keras.curation.rules import token_grams
from align_keras.curation.run import combine
from align_keras.curation.run import drop
from align_keras.curation.run import further_columns
from align_keras.curation.storage import Storage

# Rules whose reason is a number that the row itself has.
_MEASURES = {
    "shorter_side": ("width", "height"),
    "aspect_ratio": ("width", "height"),
    "token_count": ("num_tokens",),
    "character_count": ("text_length",),
    "near_duplicate": ("phash",),
}


def explain(output, row_id):
    """Tell which rules drop a row, and what they measured.

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
    stages = Storage(manifest["stages"])
    notes = stages.read_json(f"{manifest['rows_stage']}.json")
    if notes is None:
        raise FileNotFoundError(
            "The intermediate tables of this result have been discarded; run "
            "`align-keras curate` again without `--discard-stages`."
        )
    engine = open_engine()
    try:
        rows = engine.read(
            stages.address(manifest["rows_stage"]), notes["files"]
        )
        verdicts = engine.read(target.root, manifest["files"]["dropped"])
        return _explain(rows, verdicts, manifest["rules"], str(row_id), engine)
    finally:
        engine.close()


def _explain(rows, verdicts, rules, row_id, engine):
    wanted = rows.id == row_id
    if row_id.isdecimal() and int(row_id) < 2**63:
        wanted |= rows.row_id == int(row_id)
    found = engine.collect(rows.filter(wanted))
    # A row's own id goes before our number of another row.
    own = [row for row in found if row["id"] == row_id]
    found = own or found
    if not found:
        raise ValueError(f"There is no row `{row_id}` in the input.")
    ids = [row["row_id"] for row in found]
    masks = verdicts.filter(verdicts.row_id.isin(ids))
    masks = {row["row_id"]: row["mask"] for row in engine.collect(masks)}
    return [
        {
            **{name: row[name] for name in ("row_id", "id", "url", "text")},
            "rules": [
                {
                    "name": rule["name"],
                    "why": _reason(rule, row, rows, engine),
                }
                for number, rule in enumerate(rules)
                if masks.get(row["row_id"], 0) >> number & 1
            ],
        }
        for row in sorted(found, key=lambda row: row["row_id"])
    ]


def _reason(rule, row, rows, engine):
    """What the rule found in the row, and what it allows."""
    parameters = {
        name: value
        for name, value in rule["parameters"].items()
        if value not in (None, "", [], ())
    }
    allowed = ", ".join(f"{n} {v}" for n, v in parameters.items())
    return f"{_evidence(rule, parameters, row, rows, engine)} ({allowed})"


def _evidence(rule, parameters, row, rows, engine):
    kind = rule["kind"]
    if kind in _MEASURES:
        values = [f"{name} {row[name]}" for name in _MEASURES[kind]]
        return ", ".join(values).replace("None", "missing")
    if kind == "unusable":
        return "no text" if row["text_key"] is None else "no picture"
    if kind == "repeated_ids":
        return f"the id {row['id']} came before"
    if kind == "texts_per_image":
        same = rows.filter(rows.image_key == row["image_key"])
        count = _members(same, "text_key", parameters, engine)
        return f"the picture has {count} texts"
    if kind == "shared_text":
        same = rows.filter(rows.text_key == row["text_key"])
        count = _members(same, "image_key", parameters, engine)
        return f"{count} pictures have the text"
    if kind in ("rare_tokens", "rare_words", "forbidden_words"):
        return _token_evidence(kind, parameters, row, rows, engine)
    if "column" in parameters:
        return f"{parameters['column']} is {row[parameters['column']]}"
    return "as the rule says"


def _members(same, member, parameters, engine):
    distinct = parameters["count"] == "distinct"
    number = same[member].nunique() if distinct else same.count()
    return engine.collect(same.agg(number=number))[0]["number"]


def _token_evidence(kind, parameters, row, rows, engine):
    """The tokens of the row that the rule objects to, and their counts."""
    ngrams = tuple(parameters.get("ngrams", (1,)))
    mine = token_grams(rows.filter(rows.row_id == row["row_id"]), ngrams)
    mine = mine.select("gram").distinct()
    grams = token_grams(rows, ngrams)
    if kind == "forbidden_words":
        return "a word of the list"
    counts = grams.group_by("gram").agg(occurrences=grams.count())
    if kind == "rare_tokens":
        frequent = most_frequent(counts, parameters["keep"], parameters["ties"])
        bad = mine.anti_join(frequent, "gram")
    else:
        rare = counts.filter(counts.occurrences < parameters["at_least"])
        bad = mine.semi_join(rare, "gram")
    bad = counts.semi_join(bad, "gram").order_by("occurrences", "gram")
    found = engine.collect(bad.limit(5))
    named = (f"{r['gram']!r} occurs {r['occurrences']} times" for r in found)
    return "; ".join(named)


def print_sql(config, dialect="bigquery"):
    """Write a configuration's rules as SQL, a statement for each stage.

    The table `rows` has the columns of normalised rows; the tables of files,
    such as `near_duplicate_test_hashes`, are to be loaded. The last two
    tables, `verdicts` and `kept`, are the result.

    Args:
        config: see `load_config`.
        dialect: string. `"bigquery"`, `"duckdb"`, `"spark"` or another that
            Ibis knows.

    Returns:
        string.

    Raises:
        ValueError: The dialect is not known, or cannot express a rule.

    Example:

    ```python
    print(print_sql("align", "bigquery"))
    ```
    """
    ibis = require("ibis", "curation")
    config = load_config(config)
    if config.counted_rows != "raw":
        raise ValueError(
            "SQL can be printed for `counted_rows: raw`. "
            f"Received: {config.counted_rows!r}"
        )
    # Ibis writes its own Spark dialect only where there is a session.
    dialect = "databricks" if dialect == "spark" else dialect
    numbers, strings = further_columns(config)
    rows = ibis.table(ibis.schema(rows_schema(numbers, strings)), name="rows")
    statements = []

    def stage(name, table):
        name = name.replace("-", "_")
        sql = _compile(table, dialect)
        statements.append(f"CREATE TABLE {name} AS\n{sql};")
        return ibis.table(table.schema(), name=name)

    drops = []
    for rule in _all_rules(config):
        table = drop(
            rule,
            rows,
            lambda name, table, rule=rule: stage(f"{rule.name}_{name}", table),
            lambda rule=rule: _file_tables(rule),
        )
        drops.append(stage(f"drop_{rule.name}", table))
    verdicts = stage("verdicts", combine(drops))
    stage("kept", rows.anti_join(verdicts, "row_id"))
    return "\n\n".join(statements)


def _all_rules(config):
    from align_keras.curation.config import Rule

    always = [Rule("unusable", "unusable", {})]
    if config.repeated_ids == "drop":
        always.append(Rule("repeated_ids", "repeated_ids", {}))
    return [*always, *config.rules]


def _file_tables(rule):
    """The tables that a rule takes from files, by name alone."""
    ibis = require("ibis", "curation")
    columns = {
        "test_hashes": {"phash": "int64"},
        "near_images": {"image_key": "int64"},
        "words": {"gram": "string"},
    }
    return {
        name: ibis.table(schema, name=f"{rule.name}_{name}")
        for name, schema in columns.items()
    }


def _compile(table, dialect):
    ibis = require("ibis", "curation")
    try:
        return str(ibis.to_sql(table, dialect=dialect))
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"`print_sql` does not know the dialect {dialect!r}: {error}"
        ) from None
