"""Build small Arrow tables from Python values.

`pyarrow.array` would import pandas, and the import takes as long as a rule
takes for a million rows.
"""

from collections.abc import Collection

import numpy as np

from align_keras.io.optional import OptionalModule

arrow = OptionalModule("pyarrow", extra="curation")


def table_of(**columns):
    """Return an Arrow table of the named columns."""
    return arrow.Table.from_arrays(list(columns.values()), list(columns))


def integers(values: Collection[int]):
    """Return an int64 column."""
    return _array("int64", len(values), np.fromiter(values, "int64"))


def strings(values: Collection[str]):
    """Return a column of strings."""
    encoded = [value.encode(errors="replace") for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype="int32")
    return _array("string", len(values), ends, b"".join(encoded))


def _array(kind, length, *parts):
    buffers = [None, *map(arrow.py_buffer, parts)]
    kind = arrow.type_for_alias(kind)
    return arrow.Array.from_buffers(kind, length, buffers)
