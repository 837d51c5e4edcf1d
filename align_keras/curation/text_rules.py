"""Rules for texts: their length, their words, and how often these occur."""

from typing import Annotated
from typing import Literal

from align_keras.curation.arrow_tables import strings
from align_keras.curation.arrow_tables import table_of
from align_keras.curation.rule_parts import different_texts
from align_keras.curation.rule_parts import drop_crowded
from align_keras.curation.rule_parts import drop_if
from align_keras.curation.rule_parts import drop_matching
from align_keras.curation.rule_parts import drop_unless
from align_keras.curation.rule_parts import most_frequent
from align_keras.curation.rule_parts import token_counts
from align_keras.curation.rule_parts import token_grams
from align_keras.curation.rule_parts import within
from align_keras.curation.rules import Bound
from align_keras.curation.rules import Count
from align_keras.curation.rules import CountBound
from align_keras.curation.rules import FileTable
from align_keras.curation.rules import Paths
from align_keras.curation.rules import Positive
from align_keras.curation.rules import rule
from align_keras.curation.rules import shows
from align_keras.curation.text import normalize_text
from align_keras.curation.text import tokenize
from align_keras.io.fingerprints import fingerprint
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

# Longer texts are truncated in a reason.
SHOWN_CHARACTERS = 80


def _too_many_images(evidence, row):
    count = evidence.members(row, "text_key", "image_key")
    text = row["text"]
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + "…"
    return f"{count} images have the text {text!r}"


@rule("text_key", "image_key", why=_too_many_images)
def shared_text(
    rows, *, at_most: Count, count: Literal["distinct", "rows"] = "distinct"
):
    """Drop texts that too many images share.

    The paper: "alt-texts that are shared by more than 10 images",
    `at_most: 10`.
    """
    return drop_crowded(rows, "text_key", "image_key", at_most, count)


@rule("tokens", why=shows("num_tokens"))
def token_count(rows, *, at_least: Count = 0, at_most: CountBound = None):
    """Drop texts with too few or too many unigrams.

    The paper: "too short (<3 unigrams) or too long (>20 unigrams)".
    """
    return drop_unless(
        rows, within(rows.num_tokens, at_least=at_least, at_most=at_most)
    )


@rule("tokens", why=shows("text_length"))
def character_count(rows, *, at_least: Count = 0, at_most: CountBound = None):
    """Drop texts with too few or too many characters (code points)."""
    return drop_unless(
        rows, within(rows.text_length, at_least=at_least, at_most=at_most)
    )


def _lengths(name, value, directory):
    lengths = set(value)
    if not value or len(lengths) < len(value) or lengths - {1, 2, 3, 4, 5}:
        raise ValueError(
            f"`{name}` must be lengths from 1 to 5, each once. "
            f"Received: {value}"
        )
    return value


def _rare_tokens_of(evidence, row):
    mine = evidence.tokens(row, tuple(evidence.parameters["ngrams"]))
    rare = mine.anti_join(evidence.table("frequent_tokens"), "gram")
    counts = evidence.table("token_counts")
    return evidence.occurrences(counts.semi_join(rare, "gram"))


@rule("tokens", why=_rare_tokens_of)
def rare_tokens(
    rows,
    *,
    keep: Positive,
    ngrams: Annotated[tuple[int, ...], _lengths] = (1, 2),
    ties: Literal["keep", "drop"] = "keep",
    stage,
):
    """Drop texts with any token that is not among the most frequent ones.

    The paper: "any rare token (outside of 100 million most frequent unigrams
    and bigrams from the raw dataset)", `keep: 100000000`. One ranking by
    frequency holds both unigrams and bigrams. Tokens that tie at rank `keep`
    are all frequent with `ties: keep`, and all rare with `ties: drop`.
    """
    texts = stage("texts", different_texts(rows))
    counts = stage("token_counts", token_counts(texts, ngrams))
    frequent = stage("frequent_tokens", most_frequent(counts, keep, ties))
    # A token occurs at least as often as any longer token that contains it.
    # Both words of a frequent bigram are frequent, so only the longest tokens
    # need to be checked.
    grams = token_grams(texts, ngrams, ("text_key",), longest=True)
    # The small table is on the right, since engines hold that one in memory.
    rare = grams.anti_join(frequent, "gram").select("text_key").distinct()
    return drop_matching(rows, rare, "text_key")


def _rare_words_of(evidence, row):
    rare = evidence.table("rare_words")
    return evidence.occurrences(rare.semi_join(evidence.tokens(row), "gram"))


@rule("tokens", why=_rare_words_of)
def rare_words(rows, *, at_least: Count, stage):
    """Drop texts with a unigram that occurs too rarely in all rows."""
    words = token_grams(rows, (1,))
    counts = words.group_by("gram").agg(occurrences=words.count())
    rare = stage("rare_words", counts.filter(counts.occurrences < at_least))
    return words.semi_join(rare, "gram").select("row_id").distinct()


def _repeated_tokens_of(evidence, row):
    tokens = row["tokens"].split()
    again = len(tokens) - len(set(tokens))
    return f"{again} of {len(tokens)} unigrams are repeats"


@rule("tokens", why=_repeated_tokens_of)
def repeated_tokens(rows, *, at_most: Bound = 0.2):
    """Drop texts in which too large a share of unigrams are repeats."""
    tokens = rows.filter(rows.num_tokens > 0)
    tokens = tokens.select("row_id", "num_tokens", t=tokens.tokens.split(" "))
    distinct = tokens.t.unique().length()
    repeated = tokens.num_tokens - distinct
    return drop_if(tokens, repeated > tokens.num_tokens * at_most)


def _listed_words(configured, rows, stages, key, tokenizer):
    words, paths = set(), configured.parameters["words"]
    for path in paths:
        lines = split_lines(read_text(path))
        words |= {tokenize(normalize_text(line), tokenizer) for line in lines}
    words = sorted(words - {""})
    if not words:
        raise ValueError(f"There are no words in {', '.join(paths)}.")
    # The table depends on the words only, so runs on other rows share it.
    return stages.arrow(
        f"{configured.name}-words",
        fingerprint(words),
        lambda: table_of(gram=strings(words)),
    )


def _forbidden_words_of(evidence, row):
    words = evidence.table("words")
    bad = words.semi_join(evidence.tokens(row), "gram").order_by("gram")
    found = evidence.collect(bad.limit(evidence.shown))
    return ", ".join(repr(word["gram"]) for word in found)


@rule(
    "tokens",
    files=FileTable("words", {"gram": "string"}, _listed_words),
    why=_forbidden_words_of,
)
def forbidden_words(rows, *, words: Paths, listed):
    """Drop texts with any listed unigram.

    `words` names text files with one word per line.
    """
    grams = token_grams(rows, (1,))
    return grams.semi_join(listed, "gram").select("row_id").distinct()
