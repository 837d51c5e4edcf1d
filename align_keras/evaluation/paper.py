"""Look up the metrics of the ALIGN paper, to compare models with."""

import functools
from pathlib import Path

from align_keras.io.json_files import read_json

_FILE = Path(__file__).with_name("paper.json")
# Splits of TFDS, and the names of their data sets in `paper.json`.
_DATASETS = {
    "coco_captions/test": "mscoco",
    "imagenet2012/validation": "imagenet",
    "imagenet_v2/test": "imagenet_v2",
    "imagenet_r/test": "imagenet_r",
    "imagenet_a/test": "imagenet_a",
    "oxford_flowers102/test": "flowers102",
    "oxford_iiit_pet/test": "pets",
    "cars196/test": "cars",
    "food101/validation": "food101",
}
# The paper has one linear classifier on frozen features; here are two ways to
# train it.
_TASKS = {"finetune-head": "linear-probe"}
# The models of Tables 1 to 7, 11 and 12; and, for evaluations that lack them,
# the best model and the baseline of the ablations.
_MODELS = ("ALIGN", "ALIGN_EN", "ALIGN_mling")
_ABLATED = ("B7 + BERT-base, full data", "ALIGN B5 + BERT-base")


@functools.cache
def paper_rows() -> list[dict]:
    """Return all metrics of the paper's tables.

    Returns:
        A list of dictionaries: `"table"` (its number in the paper), `"task"`,
        `"dataset"`, `"model"`, `"setting"`, and `"metrics"`, percentages
        under the names that `Result` uses.

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), second
          version.
    """
    return read_json(_FILE)["rows"]


def paper_rows_of(task: str, dataset: str) -> dict[str, dict[str, float]]:
    """Return the paper's rows of one evaluation.

    Args:
        task: string.
        dataset: string. The name in our copy of the paper's tables, or in
            TFDS.

    Returns:
        A dictionary from a heading, such as `"ALIGN, zero-shot"`, to metrics.
        Rows of several tables with the same heading are merged.
    """
    wanted = _TASKS.get(task, task), _DATASETS.get(dataset, dataset)
    rows = [r for r in paper_rows() if (r["task"], r["dataset"]) == wanted]
    found: dict[str, dict[str, float]] = {}
    for models in (_MODELS, _ABLATED):
        found = found or _by_heading(rows, models)
    return found


def _by_heading(rows, models):
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["model"] not in models:
            continue
        heading = ", ".join(filter(None, (row["model"], row["setting"])))
        found.setdefault(heading, {}).update(row["metrics"])
    return found
