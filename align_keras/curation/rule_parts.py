"""Building blocks of the rules: tokens, counts and ids of dropped rows."""

import functools

from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")
exceptions = OptionalModule("ibis.common.exceptions", extra="curation")
operations = OptionalModule("ibis.expr.operations", extra="curation")


def token_grams(rows, ngrams=(1, 2), columns=("row_id",), longest=False):
    """Make one row for each occurrence of a token.

    Args:
        rows: Ibis table with `tokens`, `num_tokens` and `columns`.
        ngrams: tuple of ints. Lengths of the tokens in unigrams. Defaults to
            `(1, 2)`.
        columns: tuple of strings. The columns to keep. Defaults to
            `("row_id",)`.
        longest: bool. Whether to keep, for each text, only the tokens of the
            greatest length that occurs in it. Defaults to `False`.

    Returns:
        Ibis table of `columns` and `gram` (string).
    """
    words = rows.filter(rows.num_tokens > 0)
    words = words.select(*columns, words=words.tokens.split(" "))
    lists = [_joined(words.words, length) for length in ngrams]
    if longest:
        by_length = dict(zip(ngrams, lists, strict=True))
        count = words.words.length()
        cases = (
            (count >= length, by_length[length])
            for length in sorted(ngrams, reverse=True)
        )
        lists = [ibis.cases(*cases)]
    try:
        words.get_backend()
    except exceptions.IbisError:
        # This SQL is printed for any engine. BigQuery has no lists of lists,
        # and would turn the form below into a quadratic join.
        return union(
            words.select(*columns, gram=grams).unnest("gram") for grams in lists
        )
    # Select once, because Ibis would merge two selections and split the text
    # again for each of its words. Use one list, because for a union of two
    # DuckDB would materialise the table of words.
    grams = lists[0] if len(lists) == 1 else ibis.array(lists).flatten()
    return words.select(*columns, gram=grams.unnest())


def _joined(words, length):
    """Join an array of words to n-grams, each from its last word backwards."""
    if length == 1:
        return words

    def join(word, index):
        for offset in range(length - 2, -1, -1):
            before = words[index + offset] if offset else words[index]
            word = before + " " + word
        return word

    return words[length - 1 :].map(join)


def different_texts(rows):
    """Make one row for each distinct text, so that each is tokenized once.

    Args:
        rows: Ibis table.

    Returns:
        Ibis table of `text_key`, `tokens`, `num_tokens` and `rows`, the number
        of rows with that text. Texts without a token are left out.
    """
    texts = rows.filter(rows.num_tokens > 0)
    return texts.group_by("text_key").agg(
        tokens=texts.tokens.arbitrary(),
        num_tokens=texts.num_tokens.max(),
        rows=texts.count(),
    )


def token_counts(texts, ngrams=(1, 2)):
    """Count how often each token occurs in all rows.

    Args:
        texts: Ibis table that `different_texts` returned.
        ngrams: tuple of ints. See `token_grams`.

    Returns:
        Ibis table of `gram` and `occurrences`.
    """
    grams = token_grams(texts, ngrams, ("rows",))
    return grams.group_by("gram").agg(occurrences=int64_sum(grams.rows.sum()))


def most_frequent(counts, keep, ties="keep"):
    """Select the most frequent tokens.

    Args:
        counts: Ibis table of `gram` and `occurrences`.
        keep: int. Number of ranks to keep.
        ties: string. Whether to `"keep"` or `"drop"` all tokens that tie at
            the last rank. Defaults to `"keep"`.

    Returns:
        Ibis table of `gram`.
    """
    lowest = first_ranks(counts, "occurrences", lambda r: r <= keep, ties)
    # If not even the first rank fits, `lowest` is null, and nothing is kept.
    kept = counts.filter(counts.occurrences >= lowest.lowest.as_scalar())
    return kept.select("gram")


def first_ranks(table, by, fits, ties="keep"):
    """Find the lowest value among the first ranks.

    Args:
        table: Ibis table.
        by: string. The column to rank, highest value first.
        fits: callable. Takes ranks, an Ibis column of integers from 1 on, and
            returns whether each is among the first.
        ties: string. Whether to `"keep"` or `"drop"` all rows that tie at the
            last rank. Defaults to `"keep"`.

    Returns:
        Ibis table with one row and one column, `lowest`, which is null if no
        rank fits.
    """
    # Count the rows with each value. This table is small enough to be sorted
    # even where the rows are not.
    levels = table.group_by(by).agg(rows=table.count())
    running = levels.rows.sum().over(
        ibis.cumulative_window(order_by=ibis.desc(by))
    )
    levels = levels.select(by, "rows", running=int64_sum(running))
    reached = levels.running
    if ties == "keep":
        reached = levels.running - levels.rows + 1
    first = levels.filter(fits(reached))
    return first.agg(lowest=first[by].min())


def bands(count):
    """Return masks that cut 64 bits into bands, as signed integers."""
    edges = [64 * band // count for band in range(count + 1)]
    masks = [
        (1 << high) - (1 << low)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [m - 2**64 if m >= 2**63 else m for m in masks]


def near_in_band(rows, tests, mask, distance):
    """Select rows near a test hash that agrees in the bits of a mask."""
    mask = int64(mask)
    hashed = rows.filter(rows.phash.notnull())
    hashed = hashed.select("row_id", "phash", band=hashed.phash & mask)
    tests = tests.select(test_hash=tests.phash, band=tests.phash & mask)
    pairs = hashed.join(tests.distinct(), "band")
    near = pairs.filter(bit_count(pairs.phash ^ pairs.test_hash) <= distance)
    return near.select("row_id")


def bit_count(bits):
    """Count the one bits of the integers of an Ibis column."""
    return _bit_count()(bits)


@functools.cache
def _bit_count():
    """Wrap the engines' own function; all three use the same name."""

    @ibis.udf.scalar.builtin
    def bit_count(bits: int) -> int:
        raise NotImplementedError

    return bit_count


def drop_crowded(rows, key, member, at_most, count):
    """Drop the rows of keys with more than `at_most` members."""
    members = rows.filter(rows[key].notnull() & rows[member].notnull())
    members = members.select(key, member)
    # Few keys have that many rows at all; count distinct members only there.
    crowded = members.group_by(key).agg(members=members.count())
    crowded = crowded.filter(crowded.members > at_most).select(key)
    if count == "distinct":
        members = members.semi_join(crowded, key)
        crowded = members.group_by(key).agg(members=members[member].nunique())
        crowded = crowded.filter(crowded.members > at_most).select(key)
    return rows.semi_join(crowded, key).select("row_id")


def drop_repeated(rows, keys):
    """Drop all but the first of the rows that agree in `keys`."""
    known = functools.reduce(
        lambda one, two: one & two, [rows[key].notnull() for key in keys]
    )
    known = rows.filter(known).select("row_id", *keys)
    firsts = known.group_by(keys).agg(
        first=known.row_id.min(), rows=known.count()
    )
    firsts = firsts.filter(firsts.rows > 1)
    pairs = known.join(firsts, list(keys))
    return pairs.filter(pairs.row_id > pairs["first"]).select("row_id")


def drop_matching(rows, table, key):
    """Drop rows whose key is in another table."""
    return rows.semi_join(table, key).select("row_id")


def within(value, above=None, at_least=None, below=None, at_most=None):
    """Return whether a number lies within the given bounds."""
    bounds = (
        (above, value.__gt__),
        (at_least, value.__ge__),
        (below, value.__lt__),
        (at_most, value.__le__),
    )
    kept = [compare(bound) for bound, compare in bounds if bound is not None]
    return functools.reduce(lambda one, two: one & two, kept)


def drop_unless(rows, kept):
    """Drop rows for which a condition is false or null."""
    return rows.filter(~kept.fill_null(False)).select("row_id")


def drop_if(rows, dropped):
    """Drop rows for which a condition is true."""
    return rows.filter(dropped.fill_null(False)).select("row_id")


def int64(value):
    """Return a literal integer of 64 bits, whatever its value."""
    return ibis.literal(value, "int64")


def int64_sum(total):
    """Cast a sum of integers to 64 bits.

    DuckDB sums to 128 bits, which it writes to Parquet as floats. The method
    `cast` would do nothing, because Ibis takes the sum for an int64 already.
    """
    return operations.Cast(total, "int64").to_expr()


def union(tables):
    """Return all rows of several tables."""
    return functools.reduce(lambda one, two: one.union(two), tables)
