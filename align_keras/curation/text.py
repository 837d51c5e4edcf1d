"""One normalisation of text, tokens and hashes, the same for every engine.

Engines differ in how they lower-case "İ" or a final "Σ", and in what they take
for a blank. So all of it is done here, once, when rows are read; the rules see
stored results only.
"""

import functools
import hashlib
import unicodedata

TOKENIZERS = ("blanks", "words", "words_and_ideographs")

_IDEOGRAPH = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = r"[\w\p{M}]"
# Marks, joiners and the like may stand in a word, and are none by themselves.
_NO_WORD = r"[\p{M}\p{Default_Ignorable_Code_Point}\p{Pc}'’]+"


def normalize_text(text: str) -> str:
    """Lower-case a text, compose its characters and make blanks single.

    Args:
        text: string.

    Returns:
        string in Unicode's form NFC, lower case after Python's full mapping,
        with one space for each run of white space and none at the ends.

    Example:

    ```python
    normalize_text(" A  Cafe\u0301 ")  # "a café"
    ```
    """
    if text.isascii():
        return " ".join(text.lower().split())
    lower = unicodedata.normalize("NFC", text).lower()
    # A lower-case letter can compose with what follows where the upper case
    # letter did not.
    return " ".join(unicodedata.normalize("NFC", lower).split())


def tokenize(text: str, tokenizer: str = "blanks") -> str:
    """Cut a normalised text into unigrams, written with one space between.

    Args:
        text: string that `normalize_text` has made.
        tokenizer: string. `"blanks"` cuts at white space alone;
            `"words"` takes runs of letters, digits and marks, so that
            punctuation separates and is dropped; `"words_and_ideographs"` is
            the same with every Han, Hiragana and Katakana character a token
            of its own, for scripts that write no blanks. Defaults to
            `"blanks"`.

    Returns:
        string.
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

    Among a thousand million different texts, the chance that any two of them
    share a hash is about 3 in 100.

    Args:
        text: string.

    Returns:
        int, from -2**63 to 2**63 - 1.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
