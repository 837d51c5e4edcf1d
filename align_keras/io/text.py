"""Text of whatever origin as strings that can be written as UTF-8."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.folders import read_file

# A longer line is no row: lists and dicts could be twenty times as large.
MAX_LINE = 8 * 2**20
# A vocabulary of millions of tokens has less, as have lists of classes.
MAX_TEXT = 64 * 2**20
# Longer marks first: UTF-16's is the beginning of UTF-32's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Bytes at the beginning of a text that tell its encoding.
_HEAD = 256
# What texts do not have, unless they are read in the wrong encoding.
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f]")
_ASCII_LETTERS = re.compile(rb"[ A-Za-z]")
# Every other of so many bytes would be the high one of an ideograph.
_ASCII_WORDS = re.compile(rb"[\t\n\r ,\":A-Za-z]{9}")
# Letters from Cyrillic to Khmer, Japanese, Chinese and Korean, and what stands
# among them.
_LETTERS = re.compile(
    "[\t\n\r -~\u0400-\u17ff\u2010-\u203f\u3000-\u30ff\u4e00-\u9fff"
    "\uac00-\ud7a3\uff00-\uffef\U0001f000-\U0001faff]"
)
# What is not seen at the ends of a text. Byte order marks come into texts
# where files are joined.
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_SURROGATES = re.compile("[\ud800-\udfff]")
# `str.splitlines` also splits at form feeds, U+0085, U+2028 and others, which
# stand within texts.
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text.

    A byte order mark tells it. Without one, UTF-16 and UTF-32 have bytes that
    no text in another encoding has: the high bytes of most alphabets, zero in
    spaces and line ends, and about every tenth low byte of Chinese. Where there
    is none of these, the text is taken for UTF-8.

    Args:
        head: bytes. The beginning of the text.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    head = head[:_HEAD]
    if len(head) < 4 or not _CONTROLS.search(head):
        return "utf-8"
    for encoding, zero, plane in (("utf-32-le", 3, 2), ("utf-32-be", 0, 1)):
        planes = head[plane::4]
        if len(head) >= 8 and not any(head[zero::4]) and max(planes) <= 16:
            return encoding
    big, little = (len(_CONTROLS.findall(head[n::2])) for n in (0, 1))
    if big == little or max(big, little) <= len(head) // 4:
        return _order_of_letters(head) or "utf-8"
    return "utf-16-be" if big > little else "utf-16-le"


def _order_of_letters(head):
    """Return the UTF-16 whose order of bytes makes letters of a text."""
    # Two letters of ASCII are one of Chinese, and few letters prove nothing.
    if len(head) < 10 or len(_ASCII_LETTERS.findall(head)) > 0.6 * len(head):
        return None
    if _ASCII_WORDS.search(head):
        return None
    # Any other letter of UTF-8 is several bytes that fit each other.
    text = head.decode("utf-8", "replace")
    wrong = text.count("\ufffd") + len(_CONTROLS.findall(head))
    if sum(letter > "\x7f" for letter in text) - text.count("\ufffd") > wrong:
        return None
    scripts = {}
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        high = head[first : len(head) // 2 * 2 : 2]
        read = head[: 2 * len(high)].decode(encoding, "replace")
        if len(_LETTERS.findall(read)) >= 0.9 * len(read):
            scripts[encoding] = len(set(high))
    # Letters of an alphabet have few high bytes, and many low ones.
    fewest = [e for e, n in scripts.items() if n == min(scripts.values())]
    if len(fewest) != 1:
        return None
    # Pairs of ASCII would be of many alphabets, where ideographs are seldom
    # whole characters of UTF-8.
    is_utf_8 = "\ufffd" not in text.rstrip("\ufffd")
    return None if is_utf_8 and scripts[fewest[0]] > 3 else fewest[0]


def decode_text(contents: bytes, errors: str = "replace") -> str:
    """Decode text, without its byte order mark.

    Args:
        contents: bytes in UTF-8, UTF-16 or UTF-32, see `encoding_of`.
        errors: string. What becomes of wrong bytes. Defaults to
            `"replace"`, the character U+FFFD.

    Returns:
        string.
    """
    return contents.decode(encoding_of(contents), errors)


def clean_text(text: str) -> str:
    """Replace lone surrogates by U+FFFD.

    JSON can write them, and names of files have them in the place of bytes
    that are not UTF-8; no file of ours can hold them.
    """
    return _SURROGATES.sub("\ufffd", text)


def split_lines(text: str) -> list[str]:
    """Split a text at its line ends alone: `\\n`, `\\r\\n` and `\\r`."""
    return _LINE_ENDS.split(text)


def open_text(
    source: str | Path | io.RawIOBase, errors: str = "strict", newline: str = ""
) -> io.TextIOWrapper:
    """Open a text file to be read, in the encoding that its beginning tells.

    Args:
        source: string, `pathlib.Path`, or a stream of bytes.
        errors: string, see `open`. `"surrogateescape"`, which only UTF-8
            knows, is `"replace"` in other encodings.
        newline: string, see `open`. Defaults to `""`: lines end at `\\n`,
            `\\r\\n` and `\\r`, which they keep.
    """
    if isinstance(source, (str, os.PathLike)):
        source = open(source, "rb", buffering=0)
    buffer = io.BufferedReader(source, 2**20)
    encoding = encoding_of(buffer.peek(_HEAD)[:_HEAD])
    if errors == "surrogateescape" and not encoding.startswith("utf-8"):
        errors = "replace"
    return io.TextIOWrapper(buffer, encoding, errors, newline=newline)


def read_lines(
    file: io.TextIOBase, most: int | None = None
) -> Iterator[str | None]:
    """Yield the lines of a text file, none of which can fill the memory.

    Args:
        file: what `open_text` returned.
        most: int. Characters of a line. Defaults to `MAX_LINE`.

    Yields:
        string with its line end; `None` in the place of a longer line.
    """
    most = MAX_LINE if most is None else most
    while line := file.readline(most + 1):
        if len(line) <= most or line[-1] in "\r\n":
            yield line
            continue
        while line and line[-1] not in "\r\n":
            line = file.readline(most)
        yield None


def read_text(path: str | Path, max_bytes: int = MAX_TEXT) -> str:
    """Read a text file whole, in the encoding that its beginning tells.

    Args:
        path: string or `pathlib.Path`.
        max_bytes: int. Defaults to 64 MiB.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is larger, or not a file.
        ValueError: It is not in that encoding; the message names the file.
    """
    try:
        return decode_text(read_file(path, max_bytes), "strict")
    except UnicodeDecodeError as error:
        raise not_text(path, error) from None


def not_text(path: str | Path, error: UnicodeDecodeError) -> ValueError:
    """Return the error of a file whose bytes are not the text they should be.

    Args:
        path: string or `pathlib.Path`.
        error: what decoding has raised.
    """
    return ValueError(
        f"`{path}` is not {error.encoding.upper()} (it holds the byte "
        f"{error.object[error.start]:#04x}): convert it first, for example "
        "with iconv."
    )


def as_text(value) -> str | None:
    """Return the text of one field of a table.

    Args:
        value: what CSV, JSON or Parquet gives: a string, bytes, a number.

    Returns:
        string that can be encoded; `None` for null, NaN, infinity, booleans,
        lists and the like, which are not texts.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bytes):
        return decode_text(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Of NaN and infinity alone the difference is NaN; `math.isfinite` cannot
    # take an integer of any size.
    return str(value) if number and value - value == 0 else None


def as_texts(value) -> list[str]:
    """Return the texts of a field, or of a list of them, that are not blank.

    White space and byte order marks around them are removed.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = ((as_text(value) or "").strip(BLANKS) for value in values)
    return [text for text in texts if text]
