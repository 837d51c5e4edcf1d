"""Balance the subjects of texts, as MetaCLIP does.

A join finds the entries of a list that each text contains. Entries and texts
are both whole words separated by one space, so a text contains an entry exactly
where the entry's words follow one another in it. Entries of one or two words
are looked up among the text's unigrams and bigrams. For a longer entry, its
first three words are looked up among the text's trigrams, and then the text is
searched for the whole entry. This is exact for entries of any length, and the
cost hardly grows with their number.

An entry keeps a row if a draw from 0 to P - 1, with P = 2**31 - 1, is below
`at_most / rows * P`. The draw is `(a * image + b * text + c) ** 5 modulo P`,
where a, b and c depend on the entry and the seed, and `image` and `text` are
the row's hashes of image and text, modulo P. For a fixed entry this permutes
values that hashing has already spread evenly, and the numbers of different
entries are independent. The fifth power, also a permutation of the residues,
keeps the draws of three entries from being linearly dependent.
All products are below 2**63, so every engine computes the same values. For the
last product, which compares the draw, an entry may be in up to 2**32 rows.

Reference:
    - [Xu et al., 2023](https://arxiv.org/abs/2309.16671), algorithm 1.
"""

import hashlib
import logging
from typing import Annotated

import numpy as np

from align_keras.curation.arrow_tables import integers
from align_keras.curation.arrow_tables import strings
from align_keras.curation.arrow_tables import table_of
from align_keras.curation.rule_parts import different_texts
from align_keras.curation.rule_parts import int64
from align_keras.curation.rule_parts import int64_sum
from align_keras.curation.rule_parts import token_counts
from align_keras.curation.rule_parts import token_grams
from align_keras.curation.rule_parts import union
from align_keras.curation.rules import CountBound
from align_keras.curation.rules import FileTable
from align_keras.curation.rules import Limits
from align_keras.curation.rules import Paths
from align_keras.curation.rules import rule
from align_keras.curation.text import normalize_text
from align_keras.curation.text import tokenize
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import read_json
from align_keras.io.optional import OptionalModule
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

ibis = OptionalModule("ibis", extra="curation")

PRIME = 2**31 - 1
# MetaCLIP takes the unigrams of Wikipedia that occur at least this often.
FREQUENT = 100

# Up to this many matches of a text are compared pairwise.
SHORT = 64

logger = logging.getLogger("align_keras")


def draw_numbers(entries: list[str], seed: int) -> np.ndarray:
    """Return the three numbers that each entry's draws are computed from.

    Args:
        entries: list of strings.
        seed: int.

    Returns:
        int64 array `(len(entries), 3)` of values from 0 to 2**31 - 2.
    """
    digests = (
        hashlib.blake2b(f"{seed} {entry}".encode(), digest_size=24).digest()
        for entry in entries
    )
    numbers = np.frombuffer(b"".join(digests), "<u8") % PRIME
    return numbers.astype("int64").reshape(-1, 3)


def read_entries(path: str, tokenizer: str) -> list[str]:
    """Read a list of entries and normalise them in the same way as texts.

    Args:
        path: string. A text file with one entry per line, or a JSON file with
            a list of strings, such as MetaCLIP's `metadata.json`.
        tokenizer: string. See `tokenize`.

    Returns:
        Sorted list of distinct strings. Lines without a word are left out.

    Raises:
        ValueError: There are no entries, or the JSON is not a list of
            strings.
    """
    if str(path).lower().endswith(".json"):
        lines = read_json(path)
        listed = isinstance(lines, list)
        if not listed or not all(isinstance(line, str) for line in lines):
            raise ValueError(
                f"`{path}` must hold a list of strings, the entries."
            )
    else:
        lines = split_lines(read_text(path))
    found = [tokenize(normalize_text(line), tokenizer) for line in lines]
    no_words = [
        line
        for line, entry in zip(lines, found, strict=True)
        if not entry and line.strip()
    ]
    if no_words:
        logger.warning(
            "%d entries of `%s` are left out because they contain no word; the "
            "first is %r.",
            *(len(no_words), path, no_words[0]),
        )
    entries = sorted({*found} - {""})
    if not entries:
        raise ValueError(f"There are no entries in `{path}`.")
    return entries


def _entries(configured, rows, stages, key, tokenizer):
    """Make the table of entries, from files or from the rows themselves."""
    given = configured.parameters
    if given["metadata"]:
        lists = [read_entries(path, tokenizer) for path in given["metadata"]]
        entries = sorted({entry for entries in lists for entry in entries})
    else:
        entries = _frequent_tokens(configured, rows, stages, key)
    # The table depends on the entries only, so runs on other rows share it.
    return stages.arrow(
        f"{configured.name}-entries",
        fingerprint(entries, given["seed"]),
        lambda: _table(entries, given["seed"]),
    )


def _frequent_tokens(configured, rows, stages, key):
    """Return the frequent unigrams and bigrams of the rows, sorted."""
    least = configured.parameters["at_least"]
    least = FREQUENT if least is None else least
    name = f"{configured.name}-frequent"
    # The rule reuses this stage later.
    texts = different_texts(rows)
    texts = stages.table(f"{configured.name}-texts", key, texts)
    counts = token_counts(texts)
    frequent = counts.filter(counts.occurrences >= least).select("gram")
    found = stages.engine.collect(stages.table(name, key, frequent))
    return sorted(row["gram"] for row in found)


def _table(entries, seed):
    numbers = draw_numbers(entries, seed)
    return table_of(
        number=integers(range(len(entries))).cast("int32"),
        entry=strings(entries),
        words=integers([entry.count(" ") + 1 for entry in entries]),
        head=strings([" ".join(e.split(" ", 3)[:3]) for e in entries]),
        first=integers(numbers[:, 0]),
        second=integers(numbers[:, 1]),
        offset=integers(numbers[:, 2]),
    )


# === The rule ===


def _only_of_its_own(parameters):
    if parameters["metadata"] and parameters["at_least"] is not None:
        raise ValueError(
            "`at_least` chooses entries only when `metadata` names none; leave "
            "one of them out"
        )


def _what_was_drawn(evidence, row):
    found = evidence.table("matches")
    found = found.filter(found.text_key == row["text_key"])
    found = found.select(number=found.numbers.unnest())
    counts = evidence.table("counts").semi_join(found, "number")
    counts = evidence.collect(counts.order_by("rows", "entry"))
    if not counts:
        return "it has no entry of the list"
    shown = ", ".join(
        f"{entry['entry']!r} of {entry['rows']} rows"
        for entry in counts[: evidence.shown]
    )
    return f"no draw kept it for {shown}"


def _account(evidence):
    judged = evidence.table("dropped")
    counts = judged.group_by("has_entry").agg(rows=judged.count())
    counts = {r["has_entry"]: r["rows"] for r in evidence.collect(counts)}
    return {
        "rows without an entry": counts.get(False, 0),
        "rows that no draw kept": counts.get(True, 0),
    }


@rule(
    *("tokens", "image_key"),
    files=FileTable(
        "entries",
        {
            "number": "int32",
            "entry": "string",
            "words": "int64",
            "head": "string",
            "first": "int64",
            "second": "int64",
            "offset": "int64",
        },
        _entries,
    ),
    check=_only_of_its_own,
    why=_what_was_drawn,
    account=_account,
)
def balanced(
    rows,
    *,
    at_most: Annotated[int, Limits("be from 1 to 2**31", 1, 2**31)],
    metadata: Paths = (),
    at_least: CountBound = None,
    seed: int = 0,
    stage,
    listed,
):
    """Drop texts on crowded subjects at random, and those without an entry.

    MetaCLIP: `at_most: 20000`. If more rows than that contain an entry, the
    entry draws each of them with probability `at_most / rows`. A row stays if
    any of its entries draws it, so all rows with a rare entry stay. A row
    without any entry is dropped.
    """
    texts = stage("texts", different_texts(rows))
    matches = stage("matches", _matches(texts, listed))
    once = matches.select("rows", number=_once(matches.numbers).unnest())
    counts = once.group_by("number").agg(rows=int64_sum(once.rows.sum()))
    counts = stage("counts", counts.join(listed, "number"))
    # Most texts have an entry so rare that no draw is needed.
    found = matches.select("text_key", number=matches.numbers.unnest())
    rarest = found.join(counts.select("number", "rows"), "number")
    rarest = rarest.group_by("text_key").agg(rows=rarest.rows.min())
    rarest = stage("rarest", rarest)
    unsure = rarest.filter(rarest.rows > at_most).select("text_key")
    unsure_rows = rows.semi_join(unsure, "text_key").select(
        "row_id", "text_key", image=_residue(rows.image_key)
    )
    numbers = ("first", "second", "offset", "rows")
    tried = found.semi_join(unsure, "text_key")
    tried = tried.join(counts.select("number", *numbers), "number")
    text = tried["second"] * _residue(tried.text_key) + tried.offset
    tried = tried.select("text_key", "first", "rows", text=text % PRIME)
    tried = unsure_rows.join(tried, "text_key")
    drawn = tried.filter(_draw(tried) * tried.rows < int64(at_most * PRIME))
    unlucky = unsure_rows.anti_join(drawn.select("row_id"), "row_id")
    without = rows.anti_join(rarest, "text_key")
    dropped = union(
        table.select("row_id", has_entry=ibis.literal(has_entry))
        for table, has_entry in ((without, False), (unlucky, True))
    )
    return stage("dropped", dropped).select("row_id")


def _matches(texts, entries):
    """List the numbers of each text's entries, once per occurrence."""
    short = entries.filter(entries.words <= 2).select("number", "head")
    grams = token_grams(texts, (1, 2), ("text_key", "rows"))
    found = grams.join(short, grams.gram == short["head"])
    found = found.select("text_key", "rows", "number")
    # If no entry is longer, do not cut any text into trigrams.
    long = entries.filter(entries.words > 2).drop("first", "second", "offset")
    any_long = long.agg(count=long.count()).as_scalar() > 0
    texts = texts.filter(any_long & (texts.num_tokens > 2))
    grams = token_grams(texts, (3,), ("text_key", "rows", "tokens"))
    further = grams.join(long, grams.gram == long["head"])
    spaced = " " + further.tokens + " "
    found_whole = spaced.contains(" " + further.entry + " ")
    further = further.filter((further.words == 3) | found_whole)
    found = found.union(further.select("text_key", "rows", "number"))
    return found.group_by("text_key").agg(
        rows=found.rows.max(), numbers=found.number.collect()
    )


def _once(numbers):
    """Remove repeated numbers, since an entry counts once per text."""
    first = numbers.filter(lambda one, index: numbers.index(one) == index)
    # Quick for short arrays, but quadratic in their length.
    return ibis.ifelse(numbers.length() <= SHORT, first, numbers.unique())


def _residue(key):
    # Engines keep the sign: -3 % 2 is -1 there.
    return (key.fill_null(0) % PRIME + PRIME) % PRIME


def _draw(pairs):
    """Compute an entry's draw for a row; see the module docstring."""
    mixed = (pairs["first"] * pairs.image + pairs.text) % PRIME
    square = mixed * mixed % PRIME
    return square * square % PRIME * mixed % PRIME
