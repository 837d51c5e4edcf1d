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

from align_keras.curation.extras import require

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
    return _drop_unless(
        rows,
        _within(rows.width, above=above, at_least=at_least)
        & _within(rows.height, above=above, at_least=at_least),
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
    return _drop_unless(rows, functools.reduce(lambda a, b: a & b, kept))


@rule("image_key", "text_key")
def texts_per_image(
    rows, *, at_most: int, count: Literal["distinct", "rows"] = "distinct"
):
    """Pictures that too many texts belong to.

    The paper: "images with more than 1000 associated alt-texts",
    `at_most: 1000`.
    """
    return _drop_crowded(rows, "image_key", "text_key", at_most, count)


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
        _near_in_band(rows, tests, mask, distance)
        for mask in bands(distance + 1)
    ]
    return _union(found).distinct()


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
    return _drop_matching(rows, files["near_images"], "image_key")


@rule("<column>", column_type="number")
def adult_content(rows, *, column: str, at_most: Number = 0.5):
    """Pictures whose score of adult content is too high.

    The score is a column of the input; a row without one is not judged.
    """
    return _drop_if(rows, rows[column] > at_most)


# === The text ===


@rule("text_key", "image_key")
def shared_text(
    rows, *, at_most: int, count: Literal["distinct", "rows"] = "distinct"
):
    """Texts that too many pictures have.

    The paper: "alt-texts that are shared by more than 10 images",
    `at_most: 10`.
    """
    return _drop_crowded(rows, "text_key", "image_key", at_most, count)


@rule("tokens")
def token_count(rows, *, at_least: int = 0, at_most: int | None = None):
    """Texts with too few or too many unigrams.

    The paper: "too short (<3 unigrams) or too long (>20 unigrams)".
    """
    return _drop_unless(
        rows, _within(rows.num_tokens, at_least=at_least, at_most=at_most)
    )


@rule("tokens")
def character_count(rows, *, at_least: int = 0, at_most: int | None = None):
    """Texts with too few or too many characters (Unicode code points)."""
    return _drop_unless(
        rows, _within(rows.text_length, at_least=at_least, at_most=at_most)
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
        rows=_count(texts),
    )
    texts = stage("texts", texts)
    grams = token_grams(texts, ngrams, ("text_key", "rows"))
    counts = grams.group_by("gram").agg(occurrences=_int64(grams.rows.sum()))
    counts = stage("token_counts", counts)
    frequent = stage("frequent_tokens", most_frequent(counts, keep, ties))
    # Small table on the right: engines keep that one in memory.
    rare = grams.anti_join(frequent, "gram").select("text_key").distinct()
    return _drop_matching(rows, rare, "text_key")


@rule("tokens")
def rare_words(rows, *, at_least: int, stage):
    """Texts with a unigram that occurs fewer times than that in all rows."""
    words = token_grams(rows, (1,))
    counts = words.group_by("gram").agg(occurrences=_count(words))
    rare = stage("rare_words", counts.filter(counts.occurrences < at_least))
    return words.semi_join(rare, "gram").select("row_id").distinct()


@rule("tokens")
def repeated_tokens(rows, *, at_most: Number = 0.2):
    """Texts of which too large a part repeats earlier unigrams."""
    tokens = rows.filter(rows.num_tokens > 0)
    tokens = tokens.select("row_id", "num_tokens", t=tokens.tokens.split(" "))
    distinct = tokens.t.unique().length()
    repeated = tokens.num_tokens - distinct
    return _drop_if(tokens, repeated > tokens.num_tokens * at_most)


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
    kept = _within(rows[column], **bounds).fill_null(missing == "keep")
    return _drop_unless(rows, kept)


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
    kept = rows[column].lower().isin(values).fill_null(missing == "keep")
    return _drop_unless(rows, kept)


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
def repeated_pairs(rows, *, picture: Literal["phash", "image"] = "phash"):
    """Pairs of a picture and a text that came before; the first one stays.

    COYO-700M: `picture: phash`, the perceptual hash tells pictures apart.
    A row without a hash, or without a text, repeats nothing.
    """
    key = "phash" if picture == "phash" else "image_key"
    return _drop_repeated(rows, (key, "text_key"))


# === Always applied ===


def unusable(rows):
    """Rows without a text or without anything that names a picture."""
    return _drop_if(rows, rows.image_key.isnull() | rows.text_key.isnull())


def repeated_ids(rows):
    """Rows whose own id came before; the first one stays."""
    return _drop_repeated(rows, ("id_key",))


# === What rules are made of ===


def token_grams(rows, ngrams=(1, 2), columns=("row_id",)):
    """A row for each occurrence of a token.

    Args:
        rows: Ibis table with `tokens`, `num_tokens` and `columns`.
        ngrams: tuple of ints, lengths of the tokens in unigrams.
        columns: tuple of strings. What is kept of a row. Defaults to
            `("row_id",)`.

    Returns:
        Ibis table of `columns` and `gram` (string).
    """
    words = rows.filter(rows.num_tokens > 0)
    words = words.select(*columns, words=words.tokens.split(" "))
    # One list of all would need a test for null, which makes it twice.
    return _union(_explode(words, length, columns) for length in ngrams)


def _explode(words, length, columns):
    """A row for each n-gram of a length."""
    exceptions = require("ibis.common.exceptions", "curation")
    grams = _joined(words.words, length)
    try:
        words.get_backend()
    except exceptions.IbisError:
        # To be printed for any engine: the other form becomes a quadratic
        # join on BigQuery.
        return words.select(*columns, gram=grams).unnest("gram")
    # In one step, because Ibis would merge two and split the text again for
    # every word of it.
    return words.select(*columns, gram=grams.unnest())


def _joined(words, length):
    """The n-grams of an array of words, from their last word backwards."""
    if length == 1:
        return words

    def join(word, index):
        for offset in range(length - 2, -1, -1):
            before = words[index + offset] if offset else words[index]
            word = before + " " + word
        return word

    return words[length - 1 :].map(join)


def most_frequent(counts, keep, ties="keep"):
    """The tokens of the first ranks.

    Args:
        counts: Ibis table of `gram` and `occurrences`.
        keep: int. Number of ranks.
        ties: string. `"keep"` or `"drop"` all tokens that tie at the last.

    Returns:
        Ibis table of `gram`.
    """
    ibis = require("ibis", "curation")
    # How many tokens occur how often: a small table, which can be sorted
    # where all tokens cannot.
    levels = counts.group_by("occurrences").agg(tokens=_count(counts))
    running = levels.tokens.sum().over(
        ibis.cumulative_window(order_by=ibis.desc("occurrences"))
    )
    levels = levels.select("occurrences", "tokens", running=running)
    reached = levels.running
    if ties == "keep":
        reached = levels.running - levels.tokens + 1
    lowest = levels.filter(reached <= keep)
    lowest = lowest.agg(lowest=lowest.occurrences.min())
    # Null, where not even the first rank fits, keeps nothing.
    kept = counts.filter(counts.occurrences >= lowest.lowest.as_scalar())
    return kept.select("gram")


def bands(count):
    """Masks that cut 64 bits into bands, as signed integers."""
    edges = [64 * band // count for band in range(count + 1)]
    masks = [
        (1 << high) - (1 << low)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [m - 2**64 if m >= 2**63 else m for m in masks]


def _near_in_band(rows, tests, mask, distance):
    ibis = require("ibis", "curation")
    mask = ibis.literal(mask, "int64")
    hashed = rows.filter(rows.phash.notnull())
    hashed = hashed.select("row_id", "phash", band=hashed.phash & mask)
    tests = tests.select(test_hash=tests.phash, band=tests.phash & mask)
    pairs = hashed.join(tests.distinct(), "band")
    near = pairs.filter(bit_count(pairs.phash ^ pairs.test_hash) <= distance)
    return near.select("row_id")


def bit_count(bits):
    """Count the ones of integers, an Ibis column."""
    return _bit_count()(bits)


@functools.cache
def _bit_count():
    """The engines' own function, of one name on all three."""
    ibis = require("ibis", "curation")

    @ibis.udf.scalar.builtin
    def bit_count(bits: int) -> int: ...

    return bit_count


def _drop_crowded(rows, key, member, at_most, count):
    """Rows of a key that has more than `at_most` members."""
    members = rows.filter(rows[key].notnull() & rows[member].notnull())
    members = members.select(key, member)
    # Few keys have as many rows at all; members are told apart in those.
    crowded = members.group_by(key).agg(members=_count(members))
    crowded = crowded.filter(crowded.members > at_most).select(key)
    if count == "distinct":
        members = members.semi_join(crowded, key)
        crowded = members.group_by(key).agg(members=members[member].nunique())
        crowded = crowded.filter(crowded.members > at_most).select(key)
    return rows.semi_join(crowded, key).select("row_id")


def _drop_repeated(rows, keys):
    """All but the first of the rows that agree in `keys`."""
    known = functools.reduce(
        lambda one, two: one & two, [rows[key].notnull() for key in keys]
    )
    known = rows.filter(known).select("row_id", *keys)
    firsts = known.group_by(keys).agg(
        first=known.row_id.min(), rows=_count(known)
    )
    firsts = firsts.filter(firsts.rows > 1)
    pairs = known.join(firsts, list(keys))
    return pairs.filter(pairs.row_id > pairs["first"]).select("row_id")


def _drop_matching(rows, table, key):
    return rows.semi_join(table, key).select("row_id")


def _within(value, above=None, at_least=None, below=None, at_most=None):
    """Whether a number lies within the bounds that are given."""
    bounds = (
        (above, value.__gt__),
        (at_least, value.__ge__),
        (below, value.__lt__),
        (at_most, value.__le__),
    )
    kept = [compare(bound) for bound, compare in bounds if bound is not None]
    return functools.reduce(lambda one, two: one & two, kept)


def _drop_unless(rows, kept):
    return rows.filter(~kept.fill_null(False)).select("row_id")


def _drop_if(rows, dropped):
    return rows.filter(dropped.fill_null(False)).select("row_id")


def _count(table):
    return table.count()


def _int64(total):
    """A sum of integers as Ibis takes it to be.

    DuckDB's has 128 bits, which it writes to Parquet as a float; the method
    `cast` sees no need of a cast.
    """
    operations = require("ibis.expr.operations", "curation")
    return operations.Cast(total, "int64").to_expr()


def _union(tables):
    return functools.reduce(lambda one, two: one.union(two), tables)
