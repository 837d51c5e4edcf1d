"""Print the rules as SQL, to run them elsewhere."""

from pathlib import Path

from align_keras.curation.config import RULES
from align_keras.curation.config import CurationConfig
from align_keras.curation.config import always_applied
from align_keras.curation.config import load_config
from align_keras.curation.config import sees_remaining
from align_keras.curation.execute import combine
from align_keras.curation.execute import drop
from align_keras.curation.execute import further_columns
from align_keras.curation.execute import kept_rows
from align_keras.curation.ingest import rows_schema
from align_keras.curation.rule_parts import union
from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")


def print_sql(
    config: str | Path | CurationConfig, dialect: str = "bigquery"
) -> str:
    """Return a configuration's rules as SQL, one statement for each stage.

    The SQL reads a table `rows` with the columns of normalised rows. Tables of
    files, such as `near_duplicate_test_hashes`, must be loaded too, and so
    must `row_scores` if the configuration names scores or a rule takes them.
    The last two tables, `verdicts` and `kept`, are the result, with the
    columns that `curate` writes.

    Args:
        config: string, path or `CurationConfig`. See `load_config`.
        dialect: string. `"bigquery"`, `"duckdb"`, `"spark"` or another dialect
            of Ibis. Defaults to `"bigquery"`.

    Returns:
        string.

    Raises:
        ValueError: The dialect is unknown, or cannot express a rule.

    Example:

    ```python
    print(print_sql("align", "bigquery"))
    ```
    """
    config = load_config(config)
    # Ibis compiles to its own Spark dialect only if there is a session.
    dialect = "databricks" if dialect == "spark" else dialect
    numbers, strings = further_columns(config)
    rows = ibis.table(ibis.schema(rows_schema(numbers, strings)), name="rows")
    scores = ibis.table({"row_id": "int64", "score": "float64"}, "row_scores")
    statements = []

    def stage(name, table):
        name = name.replace("-", "_")
        sql = _compile(table, dialect)
        statements.append(f"CREATE TABLE {name} AS\n{sql};")
        return ibis.table(table.schema(), name=name)

    drops = []
    for rule in (*always_applied(config), *config.rules):
        judged = rows
        if drops and sees_remaining(config.counted_rows, rule.parameters):
            judged = rows.anti_join(union(drops), "row_id")
        table = drop(
            rule,
            judged,
            lambda name, table, rule=rule: stage(f"{rule.name}_{name}", table),
            lambda rule=rule: _file_table(rule),
            lambda: scores,
        )
        drops.append(stage(f"drop_{rule.name}", table))
    verdicts = stage("verdicts", combine(drops))
    found = scores if config.scores else None
    stage("kept", kept_rows(config, rows, verdicts, found))
    return "\n\n".join(statements)


def _file_table(rule):
    """Refer by name to the table that a rule reads from files."""
    files = RULES[rule.kind].files
    return ibis.table(files.columns, name=f"{rule.name}_{files.name}")


def _compile(table, dialect):
    try:
        return str(ibis.to_sql(table, dialect=dialect))
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"`print_sql` does not know the dialect {dialect!r}: {error}"
        ) from None
