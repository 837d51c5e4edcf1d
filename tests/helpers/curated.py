"""What a run has written, and the rows that tests give it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = {"rules": [{"token_count": {"at_least": 3, "at_most": 20}}]}


def kept(output):
    rows = pq.read_table(Path(output) / "kept").to_pylist()
    return sorted(rows, key=lambda row: row["row_id"])


def audit(output):
    return json.loads((Path(output) / "audit.json").read_text("utf-8"))


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
