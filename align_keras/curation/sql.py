"""The rules as SQL, to be run elsewhere."""

from align_keras.curation.config import Rule
from align_keras.curation.config import load_config
from align_keras.curation.ingest import rows_schema
from align_keras.curation.rule_parts import union
from align_keras.curation.run import combine
from align_keras.curation.run import drop
from align_keras.curation.run import further_columns
from align_keras.curation.run import sees_remaining
from align_keras.io.optional import require


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
        judged = rows
        if drops and sees_remaining(config.counted_rows, rule.parameters):
            judged = rows.anti_join(union(drops), "row_id")
        table = drop(
            rule,
            judged,
            lambda name, table, rule=rule: stage(f"{rule.name}_{name}", table),
            lambda rule=rule: _file_tables(rule),
        )
        drops.append(stage(f"drop_{rule.name}", table))
    verdicts = stage("verdicts", combine(drops))
    stage("kept", rows.anti_join(verdicts, "row_id"))
    return "\n\n".join(statements)


def _all_rules(config):
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
