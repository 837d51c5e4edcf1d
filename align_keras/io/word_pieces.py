"""Learn a WordPiece vocabulary deterministically.

Hugging Face's trainer numbers the characters in the order of a hash table and
breaks ties by these numbers, so two runs on the same text differ. Here the
words are counted first, and the trainer gets their characters in a fixed order.
"""

import collections
import itertools
from collections.abc import Iterable
from pathlib import Path

from align_keras.io.lists import check_list
from align_keras.io.mirrors import reads
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

# In BERT's order; the padding token must have the id 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Maximum characters of a word. A longer word becomes one unknown token.
MAX_WORD_LENGTH = 100
# Maximum bytes of a piece, without the suffix mark: tensorflow-text refuses a
# vocabulary with longer pieces.
MAX_PIECE_BYTES = 256

# The number of texts to split into words at once.
_CHUNK = 1000
# The maximum number of words in a string given to the trainer.
_REPEATS = 10_000


@reads("path")
def read_vocabulary(path: str | Path) -> list[str]:
    """Read a vocabulary with one token per line; a token may be a space.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: It is larger than 64 MiB, or not a regular file.
        ValueError: It is not text. The message names the file.
    """
    lines = split_lines(read_text(path))
    return lines if lines[-1] else lines[:-1]


def learn_word_pieces(
    texts: Iterable[str],
    vocabulary_size: int,
    strip_accents: bool = True,
    lowercase: bool = True,
) -> list[str]:
    """Learn a WordPiece vocabulary; see `AlignTokenizer.learn_vocabulary`.

    Args:
        texts: iterable of strings.
        vocabulary_size: int.
        strip_accents: bool. Defaults to `True`.
        lowercase: bool. Defaults to `True`.

    Returns:
        list of strings. `SPECIAL_TOKENS` come first.

    Raises:
        ValueError: `vocabulary_size` leaves no room for words, or `texts` is
            a string.
    """
    check_list(texts, "texts")
    if vocabulary_size <= len(SPECIAL_TOKENS):
        raise ValueError(
            "`vocabulary_size` must be larger than the "
            f"{len(SPECIAL_TOKENS)} special tokens. "
            f"Received: {vocabulary_size}."
        )
    # KerasHub depends on this package.
    import tokenizers
    from tokenizers import models
    from tokenizers import pre_tokenizers
    from tokenizers import trainers

    counts = count_words(texts, strip_accents, lowercase)
    characters = _characters(counts, max(1000, vocabulary_size // 20))
    room = (vocabulary_size - len(SPECIAL_TOKENS)) // 2
    characters = sorted(characters[: max(room, 1)])
    fixed = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    known = set(characters)
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(
        _repeat(
            (word, count)
            for word, count in counts.items()
            if known.issuperset(word) and _fits(word)
        ),
        trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=fixed,
            min_frequency=2,
            show_progress=False,
        ),
    )
    ids = learner.get_vocab()
    return sorted(ids, key=lambda piece: ids[piece])[:vocabulary_size]


def _fits(word):
    """Whether the tokenizer can use the whole word as a piece."""
    short = len(word) <= MAX_WORD_LENGTH
    return short and len(word.encode()) <= MAX_PIECE_BYTES


def count_words(
    texts: Iterable[str], strip_accents: bool = True, lowercase: bool = True
) -> collections.Counter:
    """Count the words of texts, split as BERT splits them.

    Args:
        texts: iterable of strings. Read only once.
        strip_accents: bool. Whether to remove accents. Defaults to `True`.
        lowercase: bool. Whether to lowercase them. Defaults to `True`.

    Returns:
        `collections.Counter` of words. Every punctuation mark
        and every ideograph is a separate word.
    """
    from tokenizers import normalizers
    from tokenizers import pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    cutter = pre_tokenizers.BertPreTokenizer()
    counts = collections.Counter()
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _CHUNK)):
        # One call for many texts, separated by line ends.
        chunk = normalizer.normalize_str("\n".join(chunk))
        counts.update(word for word, _ in cutter.pre_tokenize_str(chunk))
    return counts


def _characters(counts, limit):
    """Return the most frequent characters; ties go to lower code points."""
    occurrences = collections.Counter()
    for word, count in counts.items():
        for character in word:
            occurrences[character] += count
    ranked = sorted(occurrences, key=lambda c: (-occurrences[c], c))
    return ranked[:limit]


def _repeat(counts):
    """Repeat each word as often as it occurs; the trainer counts them again."""
    for word, count in counts:
        while count:
            times = min(count, _REPEATS)
            yield f"{word} " * times
            count -= times
