"""Compare the similarity of words with human judgement."""

import dataclasses
import math
from pathlib import Path

import keras
import numpy as np

from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.correlation import spearman
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.io.mirrors import reads
from align_keras.io.rows import read_numbers
from align_keras.io.rows import read_table

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


@reads("path")
def read_simlex(
    path: str | Path,
) -> tuple[list[tuple[str, str]], np.ndarray, dict[str, np.ndarray]]:
    """Read word pairs in the form of SimLex-999.

    Args:
        path: string or `pathlib.Path`. A file of values separated by tabs,
            without quoting. The columns are `word1`, `word2`, `POS` (A, N or
            V), `SimLex999` (the judgement), `concQ` (quartile of
            concreteness, 1 to 4) and `SimAssoc333` (1 for pairs that are hard
            because the words are associated).

    Returns:
        A triple: list of pairs of words; float64 array of judgements; and a
        dictionary from category to a bool array over the pairs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a judgement is not a number.
    """
    rows = read_table(path, ".tsv", COLUMNS)
    judgements = read_numbers(path, rows, "SimLex999")
    members = {
        name: np.array([bool(holds(row)) for row in rows])
        for name, holds in CATEGORIES.items()
    }
    pairs = [(row["word1"], row["word2"]) for row in rows]
    return pairs, judgements, members


def word_correlations(
    outcomes: dict[str, np.ndarray], weights: np.ndarray | None = None
) -> dict[str, float]:
    """Correlate similarities with judgements, for each category.

    Args:
        outcomes: dictionary of arrays `(num_pairs,)`: `"judgement"`,
            `"similarity"`, and a bool array `"is_CATEGORY"` for each.
        weights: integer array `(num_pairs,)`. How often each pair counts.
            Defaults to `None`, once each.

    Returns:
        A dictionary from category to Spearman's correlation; NaN if a
        category has fewer than two pairs.
    """
    judgement, similarity = outcomes["judgement"], outcomes["similarity"]
    if weights is None:
        weights = np.ones(len(judgement), "int64")
    metrics = {}
    for name in CATEGORIES:
        drawn: np.ndarray = np.repeat(
            np.arange(len(judgement)), weights * outcomes[f"is_{name}"]
        )
        metrics[name] = (
            spearman(judgement[drawn], similarity[drawn])
            if len(drawn) > 1
            else math.nan
        )
    return metrics


def measure_words(
    model: Embedder | keras.Model,
    path: str | Path,
    progress: bool = True,
    samples: int = SAMPLES,
) -> Result:
    """Measure how well the similarity of words agrees with human judgement.

    Words are compared by the cosine of the vectors that `Embedder.words`
    returns. For ALIGN, this is the vector of the `[CLS]` token before the
    projection, as in the paper's Table 12.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        path: string or `pathlib.Path`. A file in the format of SimLex-999.
        progress: bool. Whether to draw a progress bar. Defaults to `True`.
        samples: int. Resamples for the intervals. Defaults to `1000`.

    Returns:
        A `Result` with Spearman's correlation for each category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format.
    """
    embedder = as_embedder(model)
    pairs, judgements, members = read_simlex(path)
    words = sorted({word for pair in pairs for word in pair})
    place = {word: number for number, word in enumerate(words)}
    by_words = embedder.words or embedder.texts
    vectors = embed_texts(
        dataclasses.replace(embedder, texts=by_words), words, progress=progress
    )
    first, second = np.array([[place[a], place[b]] for a, b in pairs]).T
    outcomes = {
        "judgement": judgements,
        "similarity": pair_scores(vectors, vectors, first, second),
        **{f"is_{name}": held for name, held in members.items()},
    }
    return summarize(
        "words",
        word_correlations,
        outcomes,
        len(pairs),
        samples,
        dataset=Path(path).stem.lower().replace("-", ""),
        model=embedder.name,
        unit="pair of words",
        pairs={name: int(held.sum()) for name, held in members.items()},
        before_projection=embedder.words is not None,
    )
