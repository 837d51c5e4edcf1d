"""What the rules are made of: tokens, counts, and ids that are dropped."""

import functools

from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")
exceptions = OptionalModule("ibis.common.exceptions", extra="curation")
operations = OptionalModule("ibis.expr.operations", extra="curation")


def token_grams(rows, ngrams=(1, 2), columns=("row_id",), longest=False):
    """A row for each occurrence of a token.

    Args:
        rows: Ibis table with `tokens`, `num_tokens` and `columns`.
        ngrams: tuple of ints, lengths of the tokens in unigrams.
        columns: tuple of strings. What is kept of a row. Defaults to
            `("row_id",)`.
        longest: bool. Whether to take of each text only the tokens of the
            greatest length that it has. Defaults to `False`.

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
        # To be printed for any engine. BigQuery has no lists of lists, and
        # would make a quadratic join of the form below.
        return union(
            words.select(*columns, gram=grams).unnest("gram") for grams in lists
        )
    # In one step, because Ibis would merge two and split the text again for
    # every word of it; and in one list, because DuckDB would make and keep a
    # table of the words that a union of two took them from.
    grams = lists[0] if len(lists) == 1 else ibis.array(lists).flatten()
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


def different_texts(rows):
    """A row for each different text, so that it is cut into tokens once.

    Args:
        rows: Ibis table.

    Returns:
        Ibis table of `text_key`, `tokens`, `num_tokens` and `rows`, how many
        have the text. Texts without a token are left out.
    """
    texts = rows.filter(rows.num_tokens > 0)
    return texts.group_by("text_key").agg(
        tokens=texts.tokens.arbitrary(),
        num_tokens=texts.num_tokens.max(),
        rows=texts.count(),
    )


def token_counts(texts, ngrams=(1, 2)):
    """How often each token occurs in all rows.

    Args:
        texts: what `different_texts` returned.
        ngrams: see `token_grams`.

    Returns:
        Ibis table of `gram` and `occurrences`.
    """
    grams = token_grams(texts, ngrams, ("rows",))
    return grams.group_by("gram").agg(occurrences=int64_sum(grams.rows.sum()))


def most_frequent(counts, keep, ties="keep"):
    """The tokens of the first ranks.

    Args:
        counts: Ibis table of `gram` and `occurrences`.
        keep: int. Number of ranks.
        ties: string. `"keep"` or `"drop"` all tokens that tie at the last.

    Returns:
        Ibis table of `gram`.
    """
    lowest = first_ranks(counts, "occurrences", lambda r: r <= keep, ties)
    # Null, where not even the first rank fits, keeps nothing.
    kept = counts.filter(counts.occurrences >= lowest.lowest.as_scalar())
    return kept.select("gram")


def first_ranks(table, by, fits, ties="keep"):
    """The lowest value of the first ranks.

    Args:
        table: Ibis table.
        by: string. The column that is ranked, the highest value first.
        fits: callable of a rank from 1 on, an Ibis column of integers, which
            tells whether it is one of the first.
        ties: string. `"keep"` or `"drop"` all rows that tie at the last.

    Returns:
        Ibis table of one row, `lowest`, which is null where none fits.
    """
    # How many rows have which value: a small table, which can be sorted
    # where all rows cannot.
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
    """Masks that cut 64 bits into bands, as signed integers."""
    edges = [64 * band // count for band in range(count + 1)]
    masks = [
        (1 << high) - (1 << low)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [m - 2**64 if m >= 2**63 else m for m in masks]


def near_in_band(rows, tests, mask, distance):
    """Rows near a test hash that is equal in the bits of a mask."""
    mask = int64(mask)
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

    @ibis.udf.scalar.builtin
    def bit_count(bits: int) -> int:
        raise NotImplementedError

    return bit_count


def drop_crowded(rows, key, member, at_most, count):
    """Rows of a key that has more than `at_most` members."""
    members = rows.filter(rows[key].notnull() & rows[member].notnull())
    members = members.select(key, member)
    # Few keys have as many rows at all; members are told apart in those.
    crowded = members.group_by(key).agg(members=members.count())
    crowded = crowded.filter(crowded.members > at_most).select(key)
    if count == "distinct":
        members = members.semi_join(crowded, key)
        crowded = members.group_by(key).agg(members=members[member].nunique())
        crowded = crowded.filter(crowded.members > at_most).select(key)
    return rows.semi_join(crowded, key).select("row_id")


def drop_repeated(rows, keys):
    """All but the first of the rows that agree in `keys`."""
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
    """Rows whose key stands in another table."""
    return rows.semi_join(table, key).select("row_id")


def within(value, above=None, at_least=None, below=None, at_most=None):
    """Whether a number lies within the bounds that are given."""
    bounds = (
        (above, value.__gt__),
        (at_least, value.__ge__),
        (below, value.__lt__),
        (at_most, value.__le__),
    )
    kept = [compare(bound) for bound, compare in bounds if bound is not None]
    return functools.reduce(lambda one, two: one & two, kept)


def drop_unless(rows, kept):
    """Rows of which a condition is not true."""
    return rows.filter(~kept.fill_null(False)).select("row_id")


def drop_if(rows, dropped):
    """Rows of which a condition is true."""
    return rows.filter(dropped.fill_null(False)).select("row_id")


def int64(value):
    """An integer of 64 bits, whatever its size."""
    return ibis.literal(value, "int64")


def int64_sum(total):
    """A sum of integers as Ibis takes it to be.

    DuckDB's has 128 bits, which it writes to Parquet as a float; the method
    `cast` sees no need of a cast.
    """
    return operations.Cast(total, "int64").to_expr()


def union(tables):
    """All rows of some tables."""
    return functools.reduce(lambda one, two: one.union(two), tables)
