"""The rules: each a function from the table of rows to the ids it drops.

A rule takes rows as `align_keras.curation.ingest` describes them, an Ibis
table, and returns an Ibis table of one column, `row_id`, in which no id
repeats. Nothing runs here: the same definitions become DuckDB's, Spark's or
BigQuery's SQL. Only what all three know alike is used; text reaches the rules
in lower case, and everything is counted on the rows that are given.

A rule whose parameters include `stage` may store an intermediate table under a
name, which ends recomputation; one with `files` gets tables made of the files
that its other parameters name.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Literal

from align_keras.curation.ingest import input_column
from align_keras.curation.rule_parts import bands
from align_keras.curation.rule_parts import drop_crowded
from align_keras.curation.rule_parts import drop_if
from align_keras.curation.rule_parts import drop_matching
from align_keras.curation.rule_parts import drop_repeated
from align_keras.curation.rule_parts import drop_unless
from align_keras.curation.rule_parts import int64_sum
from align_keras.curation.rule_parts import most_frequent
from align_keras.curation.rule_parts import near_in_band
from align_keras.curation.rule_parts import token_grams
from align_keras.curation.rule_parts import union
from align_keras.curation.rule_parts import within

# Bounds that a rule can have; what lies outside them, or is null, is dropped.
Number = float | None

RULES = {}


@dataclasses.dataclass(frozen=True)
class RuleKind:
    """A registered rule.

    Attributes:
        name: string, as configurations write it.
        function: callable.
        needs: tuple of strings. The columns without which it cannot judge;
            the value of a parameter stands for `"<parameter>"`.
        column_type: string or `None`. `"number"` or `"string"`, of the column
            that the parameter `column` names.
        parameters: dict from the names that a configuration may set to
            `inspect.Parameter`.
        given: tuple of strings. Parameters that the run itself provides:
            `"stage"` and `"files"`.
    """

    name: str
    function: Callable
    needs: tuple
    column_type: str | None
    parameters: dict
    given: tuple = ()


def rule(*needs, column_type=None):
    """Register a function as a rule under its own name.

    Args:
        *needs: strings. Columns without which the rule cannot judge.
        column_type: string. `"number"` or `"string"`: the type of the
            further column that the parameter `column` names.
    """

    def register(function):
        parameters = dict(inspect.signature(function).parameters)
        del parameters["rows"]
        given = tuple(n for n in ("stage", "files") if n in parameters)
        settable = {k: v for k, v in parameters.items() if k not in given}
        RULES[function.__name__] = RuleKind(
            function.__name__, function, needs, column_type, settable, given
        )
        return function

    return register


# === The picture ===


@rule("width", "height")
def shorter_side(rows, *, above: Number = None, at_least: Number = None):
    """Pictures whose shorter side is too short, in pixels.

    The paper: "shorter dimension larger than 200 pixels", `above: 200`.
    """
    return drop_unless(
        rows,
        within(rows.width, above=above, at_least=at_least)
        & within(rows.height, above=above, at_least=at_least),
    )


@rule("width", "height")
def aspect_ratio(rows, *, below: Number = None, at_most: Number = None):
    """Pictures whose longer side is too many times the shorter one.

    The paper: "aspect ratio smaller than 3", `below: 3`. No division is
    done, so that 600 by 200 is exactly 3 on every engine.
    """
    kept = []
    for one, other in (
        (rows.width, rows.height),
        (rows.height, rows.width),
    ):
        if below is not None:
            kept.append(one < other * below)
        if at_most is not None:
            kept.append(one <= other * at_most)
    return drop_unless(rows, functools.reduce(lambda a, b: a & b, kept))


@rule("image_key", "text_key")
def texts_per_image(
    rows, *, at_most: int, count: Literal["distinct", "rows"] = "distinct"
):
    """Pictures that too many texts belong to.

    The paper: "images with more than 1000 associated alt-texts",
    `at_most: 1000`.
    """
    return drop_crowded(rows, "image_key", "text_key", at_most, count)


@rule("phash")
def near_duplicate(
    rows,
    *,
    test_images: tuple[str, ...] = (),
    distance: int = 3,
    mirrored: bool = True,
    files,
):
    """Pictures whose perceptual hash is near that of a test picture.

    Hashes of a Hamming distance up to `distance` agree in at least one of
    `distance + 1` bands of bits, so only pairs that share a band are compared.
    A row without a hash is not judged.
    """
    tests = files["test_hashes"]
    found = [
        near_in_band(rows, tests, mask, distance)
        for mask in bands(distance + 1)
    ]
    return union(found).distinct()


@rule("image_key")
def near_duplicate_embedding(
    rows,
    *,
    test_images: tuple[str, ...] = (),
    pictures: str = "",
    model: str = "",
    clusters: int = 4096,
    nearest: int = 10,
    shared: int = 3,
    cosine: float = 0.975,
    files,
):
    """Pictures whose embedding is near that of a test picture.

    Appendix A of the paper; see `embedding_duplicates.py`.
    """
    return drop_matching(rows, files["near_images"], "image_key")


@rule("<column>", column_type="number")
def adult_content(rows, *, column: str, at_most: Number = 0.5):
    """Pictures whose score of adult content is too high.

    The score is a column of the input; a row without one is not judged.
    """
    return drop_if(rows, rows[input_column(column)] > at_most)


# === The text ===


@rule("text_key", "image_key")
def shared_text(
    rows, *, at_most: int, count: Literal["distinct", "rows"] = "distinct"
):
    """Texts that too many pictures have.

    The paper: "alt-texts that are shared by more than 10 images",
    `at_most: 10`.
    """
    return drop_crowded(rows, "text_key", "image_key", at_most, count)


@rule("tokens")
def token_count(rows, *, at_least: int = 0, at_most: int | None = None):
    """Texts with too few or too many unigrams.

    The paper: "too short (<3 unigrams) or too long (>20 unigrams)".
    """
    return drop_unless(
        rows, within(rows.num_tokens, at_least=at_least, at_most=at_most)
    )


@rule("tokens")
def character_count(rows, *, at_least: int = 0, at_most: int | None = None):
    """Texts with too few or too many characters (Unicode code points)."""
    return drop_unless(
        rows, within(rows.text_length, at_least=at_least, at_most=at_most)
    )


@rule("tokens")
def rare_tokens(
    rows,
    *,
    keep: int,
    ngrams: tuple[int, ...] = (1, 2),
    ties: Literal["keep", "drop"] = "keep",
    stage,
):
    """Texts with any token outside the most frequent ones.

    The paper: "any rare token (outside of 100 million most frequent unigrams
    and bigrams from the raw dataset)", `keep: 100000000`. Unigrams and
    bigrams stand in one ranking by how often they occur. Of the tokens that
    tie at rank `keep`, all are frequent with `ties: keep`, none with `drop`.
    """
    # Many rows share a text: each is cut into tokens once.
    texts = rows.filter(rows.num_tokens > 0)
    texts = texts.group_by("text_key").agg(
        tokens=texts.tokens.arbitrary(),
        num_tokens=texts.num_tokens.max(),
        rows=texts.count(),
    )
    texts = stage("texts", texts)
    grams = token_grams(texts, ngrams, ("text_key", "rows"))
    counts = grams.group_by("gram").agg(occurrences=int64_sum(grams.rows.sum()))
    counts = stage("token_counts", counts)
    frequent = stage("frequent_tokens", most_frequent(counts, keep, ties))
    # A token occurs at least as often as any longer one that it is part of: of
    # a frequent bigram both words are frequent, and need no look.
    grams = token_grams(texts, ngrams, ("text_key",), longest=True)
    # Small table on the right: engines keep that one in memory.
    rare = grams.anti_join(frequent, "gram").select("text_key").distinct()
    return drop_matching(rows, rare, "text_key")


@rule("tokens")
def rare_words(rows, *, at_least: int, stage):
    """Texts with a unigram that occurs fewer times than that in all rows."""
    words = token_grams(rows, (1,))
    counts = words.group_by("gram").agg(occurrences=words.count())
    rare = stage("rare_words", counts.filter(counts.occurrences < at_least))
    return words.semi_join(rare, "gram").select("row_id").distinct()


@rule("tokens")
def repeated_tokens(rows, *, at_most: Number = 0.2):
    """Texts of which too large a part repeats earlier unigrams."""
    tokens = rows.filter(rows.num_tokens > 0)
    tokens = tokens.select("row_id", "num_tokens", t=tokens.tokens.split(" "))
    distinct = tokens.t.unique().length()
    repeated = tokens.num_tokens - distinct
    return drop_if(tokens, repeated > tokens.num_tokens * at_most)


@rule("tokens")
def forbidden_words(rows, *, words: tuple[str, ...], files):
    """Texts with any unigram of a list; `words` names files of one a line."""
    grams = token_grams(rows, (1,))
    return grams.semi_join(files["words"], "gram").select("row_id").distinct()


# === Either ===


@rule("<column>", column_type="number")
def number(
    rows,
    *,
    column: str,
    above: Number = None,
    at_least: Number = None,
    below: Number = None,
    at_most: Number = None,
    missing: Literal["keep", "drop"] = "drop",
):
    """Rows whose number in a column lies outside bounds."""
    bounds = {"above": above, "at_least": at_least}
    bounds |= {"below": below, "at_most": at_most}
    kept = within(rows[input_column(column)], **bounds).fill_null(
        missing == "keep"
    )
    return drop_unless(rows, kept)


@rule("<column>", column_type="string")
def one_of(
    rows,
    *,
    column: str,
    values: tuple[str, ...],
    missing: Literal["keep", "drop"] = "drop",
):
    """Rows whose string in a column is none of some, compared without case."""
    values = [value.lower() for value in values]
    found = rows[input_column(column)].lower().isin(values)
    kept = found.fill_null(missing == "keep")
    return drop_unless(rows, kept)


@rule("<column>", column_type="string")
def language(
    rows,
    *,
    column: str = "language",
    keep: tuple[str, ...],
    missing: Literal["keep", "drop"] = "drop",
):
    """Texts in other languages, by a column of the input."""
    return one_of(rows, column=column, values=keep, missing=missing)


@rule("text_key")
def repeated_pairs(
    rows,
    *,
    picture: Literal["phash", "image"] = "phash",
    among: Literal["raw", "remaining"] = "raw",
):
    """Pairs of a picture and a text that came before; the first one stays.

    COYO-700M: `picture: phash`, the perceptual hash tells pictures apart.
    A row without a hash, or without a text, repeats nothing. With `among:
    raw` another rule may drop the first one, and then none stays; with
    `remaining` the run gives only what the rules before this one have left.
    """
    key = "phash" if picture == "phash" else "image_key"
    return drop_repeated(rows, (key, "text_key"))


# === Always applied ===


def unusable(rows):
    """Rows without a text or without anything that names a picture."""
    return drop_if(rows, rows.image_key.isnull() | rows.text_key.isnull())


def repeated_ids(rows):
    """Rows whose own id came before; the first one stays."""
    return drop_repeated(rows, ("id_key",))
