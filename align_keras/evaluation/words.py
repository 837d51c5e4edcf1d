"""Similarity of words, against human judgement."""

import csv
import math
from pathlib import Path

import numpy as np

from align_keras.evaluation.correlation import spearman

COLUMNS = ("word1", "word2", "POS", "SimLex999", "concQ", "SimAssoc333")
# The rows of the paper's Table 12.
CATEGORIES = {
    "all": lambda row: True,
    "adjectives": lambda row: row["POS"] == "A",
    "nouns": lambda row: row["POS"] == "N",
    "verbs": lambda row: row["POS"] == "V",
    "concreteness_q1": lambda row: row["concQ"] == "1",
    "concreteness_q2": lambda row: row["concQ"] == "2",
    "concreteness_q3": lambda row: row["concQ"] == "3",
    "concreteness_q4": lambda row: row["concQ"] == "4",
    "hard": lambda row: row["SimAssoc333"] == "1",
}


def read_simlex(path):
    """Read word pairs in the form of SimLex-999.

    Args:
        path: string or `pathlib.Path`. Values separated by tabs, with the
            columns `word1`, `word2`, `POS` (A, N or V), `SimLex999` (the
            judgement), `concQ` (quartile of concreteness, 1 to 4) and
            `SimAssoc333` (1 for the pairs that are hard because they are
            associated).

    Returns:
        A triple: list of pairs of words; float64 array of judgements; and a
        dictionary from category to a bool array over the pairs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a judgement is no number.
    """
    path = Path(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"`{path}` lacks the column `{min(missing)}` of SimLex-999."
            )
        rows = list(reader)
    judgements = []
    for number, row in enumerate(rows, start=2):
        try:
            judgements.append(float(row["SimLex999"]))
        except (TypeError, ValueError):
            raise ValueError(
                f"`{path}` has the judgement {row['SimLex999']!r} in line "
                f"{number}, which is no number."
            ) from None
    members = {
        name: np.array([bool(holds(row)) for row in rows])
        for name, holds in CATEGORIES.items()
    }
    pairs = [(row["word1"], row["word2"]) for row in rows]
    return pairs, np.array(judgements), members


def word_figures(outcomes, weights=None):
    """Correlate similarities with judgements, for each category.

    Args:
        outcomes: dictionary of arrays `(num_pairs,)`: `"judgement"`,
            `"similarity"`, and a bool array `"is_CATEGORY"` for each.
        weights: integer array `(num_pairs,)`. How often each pair counts.
            Defaults to `None`, once each.

    Returns:
        A dictionary from category to Spearman's correlation; NaN where a
        category has fewer than two pairs.
    """
    judgement, similarity = outcomes["judgement"], outcomes["similarity"]
    if weights is None:
        weights = np.ones(len(judgement), "int64")
    figures = {}
    for name in CATEGORIES:
        drawn = np.repeat(
            np.arange(len(judgement)), weights * outcomes[f"is_{name}"]
        )
        figures[name] = (
            spearman(judgement[drawn], similarity[drawn])
            if len(drawn) > 1
            else math.nan
        )
    return figures
