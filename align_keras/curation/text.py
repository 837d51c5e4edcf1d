"""Normalise, tokenize and hash texts alike for every engine.

Engines differ in how they lower-case "İ" or a final "Σ", and in which
characters count as white space. So all of this is done here, once, when rows
are read; the rules see only the stored results.
"""

import functools
import hashlib
import unicodedata

TOKENIZERS = ("blanks", "words", "words_and_ideographs")

_IDEOGRAPH = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = r"[\w\p{M}]"
# Marks, joiners and the like may be part of a word, but are no word alone.
_NO_WORD = r"[\p{M}\p{Default_Ignorable_Code_Point}\p{Pc}'’]+"


def normalize_text(text: str) -> str:
    """Lower-case a text, compose its characters and collapse white space.

    Args:
        text: string.

    Returns:
        string in Unicode's form NFC, in lower case by Python's full mapping,
        with one space for each run of white space and none at the ends.

    Example:

    ```python
    normalize_text(" A  Cafe\u0301 ")  # "a café"
    ```
    """
    if text.isascii():
        return " ".join(text.lower().split())
    lower = unicodedata.normalize("NFC", text).lower()
    # A lower-case letter may compose with the next character even if its
    # upper-case form did not.
    return " ".join(unicodedata.normalize("NFC", lower).split())


def tokenize(text: str, tokenizer: str = "blanks") -> str:
    """Split a normalised text into unigrams.

    Args:
        text: string that `normalize_text` returned.
        tokenizer: string. `"blanks"` splits at white space only. `"words"`
            takes runs of letters, digits and marks, and drops punctuation.
            `"words_and_ideographs"` does the same, but makes every Han,
            Hiragana and Katakana character a token, for scripts without
            spaces. Defaults to `"blanks"`.

    Returns:
        string of the unigrams, separated by single spaces.
    """
    if tokenizer == "blanks":
        return text
    words, no_word = _patterns(tokenizer)
    return " ".join(w for w in words.findall(text) if not no_word.fullmatch(w))


@functools.cache
def _patterns(tokenizer):
    import regex

    letter, one = _WORD, ""
    if tokenizer == "words_and_ideographs":
        letter = rf"(?:(?![{_IDEOGRAPH}]){_WORD})"
        one = rf"[{_IDEOGRAPH}]\p{{M}}*|"
    words = rf"{one}{letter}+(?:['’]{letter}+)*"
    return regex.compile(words), regex.compile(_NO_WORD)


def signed_hash(text: str) -> int:
    """Hash a string to a signed 64-bit integer, the same on every machine.

    Among a billion different texts, the probability that any two share a hash
    is about 3 %.

    Args:
        text: string.

    Returns:
        int, from -2**63 to 2**63 - 1.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
