"""Read text of any origin as strings that can be written as UTF-8."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.folders import read_file

# A longer line is not a row; parsed, it could take twenty times the memory.
MAX_LINE = 8 * 2**20
# Vocabularies of millions of tokens, and lists of classes, are smaller.
MAX_TEXT = 64 * 2**20
# Longer marks come first: UTF-32's begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The number of bytes that are used to detect the encoding of a text.
_HEAD = 256
# Bytes that texts do not have, unless they are read in the wrong encoding.
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f]")
_ASCII_LETTERS = re.compile(rb"[ A-Za-z]")
# In UTF-16, every other byte of such a run would be the high one of an
# ideograph.
_ASCII_WORDS = re.compile(rb"[\t\n\r ,\":A-Za-z]{9}")
# Letters from Cyrillic to Khmer, Japanese, Chinese and Korean, and characters
# that occur among them.
_LETTERS = re.compile(
    "[\t\n\r -~\u0400-\u17ff\u2010-\u203f\u3000-\u30ff\u4e00-\u9fff"
    "\uac00-\ud7a3\uff00-\uffef\U0001f000-\U0001faff]"
)
# Invisible characters to strip from the ends of a text. Byte order marks get
# into texts when files are joined.
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_SURROGATES = re.compile("[\ud800-\udfff]")
# `str.splitlines` also splits at form feeds, U+0085, U+2028 and others, which
# occur within texts.
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


def encoding_of(head: bytes) -> str:
    """Detect the encoding of a text.

    It follows from a byte order mark if there is one. Without it, UTF-16 and
    UTF-32 are recognized by control bytes that other encodings do not have:
    the high bytes of most alphabets, the zeros in spaces and line ends, and
    about every tenth low byte of Chinese. If there are none of these, the text
    is assumed to be UTF-8.

    Args:
        head: bytes. The beginning of the text.

    Returns:
        string, the name of a Python codec.
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
    """Return the byte order of UTF-16 in which a text consists of letters."""
    # Two ASCII letters look like one of Chinese, and a few prove nothing.
    if len(head) < 10 or len(_ASCII_LETTERS.findall(head)) > 0.6 * len(head):
        return None
    if _ASCII_WORDS.search(head):
        return None
    # Other letters of UTF-8 are valid sequences of several bytes.
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
    # The letters of an alphabet have few different high bytes.
    fewest = [e for e, n in scripts.items() if n == min(scripts.values())]
    if len(fewest) != 1:
        return None
    # Pairs of ASCII letters would belong to many alphabets, while ideographs
    # are rarely valid UTF-8.
    is_utf_8 = "\ufffd" not in text.rstrip("\ufffd")
    return None if is_utf_8 and scripts[fewest[0]] > 3 else fewest[0]


def decode_text(contents: bytes, errors: str = "replace") -> str:
    """Decode text and remove its byte order mark.

    Args:
        contents: bytes in UTF-8, UTF-16 or UTF-32; see `encoding_of`.
        errors: string. How to handle invalid bytes. Defaults to `"replace"`,
            which writes U+FFFD.

    Returns:
        string.
    """
    return contents.decode(encoding_of(contents), errors)


def clean_text(text: str) -> str:
    """Replace lone surrogates by U+FFFD.

    They occur in JSON, and in file names in place of bytes that are not UTF-8.
    They cannot be written to UTF-8 files.
    """
    return _SURROGATES.sub("\ufffd", text)


def split_lines(text: str) -> list[str]:
    """Split a text at line ends only: `\\n`, `\\r\\n` and `\\r`."""
    return _LINE_ENDS.split(text)


def open_text(
    source: str | Path | io.RawIOBase, errors: str = "strict", newline: str = ""
) -> io.TextIOWrapper:
    """Open a text file for reading, and detect its encoding.

    Args:
        source: string, `pathlib.Path`, or a stream of bytes.
        errors: string. See `open`. `"surrogateescape"` works only with UTF-8
            and becomes `"replace"` for other encodings. Defaults to
            `"strict"`.
        newline: string. See `open`. Defaults to `""`: lines end at `\\n`,
            `\\r\\n` and `\\r`, and keep their line ends.
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
    """Yield the lines of a text file, limited in length.

    Args:
        file: a text file from `open_text`.
        most: int. The maximum number of characters of a line. Defaults to
            `MAX_LINE`.

    Yields:
        string with its line end; `None` in place of a longer line.
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
    """Read a whole text file, and detect its encoding.

    Args:
        path: string or `pathlib.Path`.
        max_bytes: int. The maximum size. Defaults to 64 MiB.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: It is too large, or not a regular file.
        ValueError: It is not valid in the detected encoding. The message names
            the file.
    """
    try:
        return decode_text(read_file(path, max_bytes), "strict")
    except UnicodeDecodeError as error:
        raise not_text(path, error) from None


def not_text(path: str | Path, error: UnicodeDecodeError) -> ValueError:
    """Make the error for a file that cannot be decoded as text.

    Args:
        path: string or `pathlib.Path`.
        error: `UnicodeDecodeError` from decoding.
    """
    return ValueError(
        f"`{path}` is not {error.encoding.upper()} (it holds the byte "
        f"{error.object[error.start]:#04x}): convert it first, for example "
        "with iconv."
    )


def as_text(value) -> str | None:
    """Return the text of one field of a table.

    Args:
        value: a value from CSV, JSON or Parquet, such as a string, bytes or a
            number.

    Returns:
        string that can be encoded as UTF-8; `None` for values that are not
        text: null, NaN, infinity, booleans, lists and the like.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bytes):
        return decode_text(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The difference is NaN only for NaN and infinity; `math.isfinite` fails
    # for very large integers.
    return str(value) if number and value - value == 0 else None


def as_texts(value) -> list[str]:
    """Return the texts of a field or of a list of fields, without blank ones.

    Surrounding white space and byte order marks are removed.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = ((as_text(value) or "").strip(BLANKS) for value in values)
    return [text for text in texts if text]
