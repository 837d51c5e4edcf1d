"""Prepare text for WordPiece like BERT, in Python and in a TensorFlow graph.

Both do the same as BERT's reference code and Hugging Face's `BertNormalizer`
and `BertPreTokenizer`: remove control and private characters, turn all white
space into spaces, separate CJK characters, strip accents, lowercase letter by
letter ("ß" stays), and separate punctuation. KerasHub's WordPiece differs in
each of these, so its ids differ for unusual texts. Results may differ from
the reference for characters newer than Unicode 8, which it does not know.
Python and the graph agree on all characters, see `unicode_classes`; but
several marks newer than Unicode 14 on one letter may come in another order.
"""

import functools
import re
import unicodedata

import regex

from align_keras.preprocessing.unicode_classes import ACCENTS
from align_keras.preprocessing.unicode_classes import PUNCTUATION
from align_keras.preprocessing.unicode_classes import SEPARATORS
from align_keras.preprocessing.unicode_classes import UNSEEN
from align_keras.preprocessing.unicode_classes import YOUNG_CAPITALS
from align_keras.preprocessing.unicode_classes import YOUNG_COMPOSITIONS
from align_keras.preprocessing.unicode_classes import members

# Patterns in the syntax of RE2, which tensorflow-text uses.
_CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{fffd}"
_DROPPED = f"[{_CONTROLS}{members(UNSEEN)}]"
_SPACE = rf"[\t\n\r{members(SEPARATORS)}]"
# As in the reference, including the gap before 2B920.
_CJK = (
    r"[\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{f900}-\x{faff}"
    r"\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}"
    r"\x{2b920}-\x{2ceaf}\x{2f800}-\x{2fa1f}]"
)
_ACCENT = f"[{members(ACCENTS)}]"
# All ASCII symbols, including those that Unicode does not call punctuation.
_PUNCTUATION = r"[!-/:-@\[-`{-~" + members(PUNCTUATION) + "]"
_YOUNG_CAPITAL = f"[{members(YOUNG_CAPITALS)}]"


@functools.cache
def _compiled(pattern):
    pattern = re.sub(
        r"\\x\{(\w+)\}",
        lambda match: f"\\U{int(match[1], 16):08x}",
        pattern,
    )
    return regex.compile(pattern)


def special_pattern(tokens):
    """Return a pattern, in both syntaxes, that matches any of the tokens."""
    return "|".join(re.escape(token) for token in tokens)


def normalize(text, lowercase, strip_accents, split_on_cjk):
    """Normalise one string in Python."""
    text = _compiled(_DROPPED).sub("", text)
    text = _compiled(_SPACE).sub(" ", text)
    if text.isascii():  # Most texts; the steps below only change others.
        return text.lower() if lowercase else text
    if split_on_cjk:
        text = _compiled(_CJK).sub(r" \g<0> ", text)
    if strip_accents:
        text = text.translate(YOUNG_COMPOSITIONS)
        text = unicodedata.normalize("NFD", text)
        text = _compiled(_ACCENT).sub("", text)
    if lowercase:
        # Lowercase letter by letter: as a whole, a final sigma would differ.
        kept = set(_compiled(_YOUNG_CAPITAL).findall(text))
        text = "".join(c if c in kept else c.lower() for c in text)
    return text


def split_words(text):
    """Split a normalised string into words and punctuation, in Python."""
    words = []
    for part in text.split(" "):
        start = 0
        for match in _compiled(_PUNCTUATION).finditer(part):
            words += [part[start : match.start()], match[0]]
            start = match.end()
        words.append(part[start:])
    return [word for word in words if word]


def split_special(text, pattern):
    """Split a string at special tokens, in Python.

    Returns:
        A list of pairs of a string and whether it is a special token.
    """
    if not pattern:
        return [(text, False)]
    pieces = re.split(f"({pattern})", text)
    return [(piece, bool(i % 2)) for i, piece in enumerate(pieces)]


# === In the graph ===


def normalize_in_graph(texts, lowercase, strip_accents, split_on_cjk):
    """Normalise a string tensor `(batch,)`, as `normalize` does."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    replace = tf.strings.regex_replace
    # Bytes that are not UTF-8 become U+FFFD, which `_DROPPED` includes.
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
    texts = replace(texts, _DROPPED, "")
    texts = replace(texts, _SPACE, " ")
    if split_on_cjk:
        texts = replace(texts, _CJK, r" \0 ")
    if strip_accents:
        texts = tf_text.normalize_utf8(texts, "NFD")
        texts = replace(texts, _ACCENT, "")
    if lowercase:
        texts = tf.strings.lower(replace(texts, "Σ", "σ"), encoding="utf-8")
    return texts


def split_words_in_graph(texts):
    """Split a string tensor `(batch,)` like `split_words`; return it ragged."""
    import tensorflow_text as tf_text

    return tf_text.regex_split(texts, f" |{_PUNCTUATION}", _PUNCTUATION)


def split_special_in_graph(texts, pattern):
    """Split strings at special tokens.

    Returns:
        A ragged string tensor `(batch, pieces)`, and a bool tensor that tells
        for each of its flat values whether it is a special token.
    """
    import tensorflow as tf
    import tensorflow_text as tf_text

    # A null byte would end the text; any other control character is removed
    # later, as a null byte should be.
    texts = tf.strings.regex_replace(texts, r"\x00", "\x01")
    pieces = tf_text.regex_split(texts, pattern, pattern)
    is_special = tf.strings.regex_full_match(pieces.flat_values, pattern)
    return pieces, is_special
