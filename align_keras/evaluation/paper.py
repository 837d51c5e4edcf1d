"""The figures of the ALIGN paper, to stand beside one's own."""

import functools
import json
from pathlib import Path

_FILE = Path(__file__).with_name("paper.json")


@functools.cache
def paper_rows():
    """Return all figures of the paper's tables.

    Returns:
        A list of dictionaries: `"table"` (its number in the paper), `"task"`,
        `"dataset"`, `"model"`, `"setting"`, and `"figures"`, percentages
        under the names that our results use.

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), second
          version.
    """
    return json.loads(_FILE.read_text("utf-8"))["rows"]


def paper_rows_of(task, dataset, models=("ALIGN", "ALIGN_EN", "ALIGN_mling")):
    """Return the paper's rows of one evaluation.

    Args:
        task: string.
        dataset: string.
        models: tuple of strings, or `None` for all.

    Returns:
        A dictionary from a heading, as in `"ALIGN, zero-shot"`, to figures.
        Rows of one heading in several tables are one.
    """
    found = {}
    for row in paper_rows():
        if (row["task"], row["dataset"]) != (task, dataset):
            continue
        if models is not None and row["model"] not in models:
            continue
        heading = ", ".join(filter(None, (row["model"], row["setting"])))
        found.setdefault(heading, {}).update(row["figures"])
    return found
