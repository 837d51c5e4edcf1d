"""Learn a WordPiece vocabulary from kept texts."""

import logging
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

from align_keras.curation.ingest import choose_columns
from align_keras.curation.ingest import one_text_each
from align_keras.curation.ingest import read_strings
from align_keras.curation.ingest import usual_names
from align_keras.curation.input_files import find_inputs
from align_keras.curation.input_files import is_text
from align_keras.curation.input_files import read_batches
from align_keras.io.atomic import atomic_file
from align_keras.io.columns import UnfitColumn
from align_keras.io.folders import require_regular
from align_keras.io.kept_rows import kept_folder
from align_keras.io.lists import path_list
from align_keras.io.mirrors import reads
from align_keras.io.progress import progress_steps
from align_keras.io.text import open_text
from align_keras.io.text import read_lines
from align_keras.io.word_pieces import learn_word_pieces

# The paper: 100k wordpieces, and 250k for the multilingual model.
SIZE = 100_000
MULTILINGUAL_SIZE = 250_000

logger = logging.getLogger("align_keras")


@reads("inputs")
def learn_vocabulary(
    inputs: str | Path | Iterable,
    output: str | Path,
    size: int = SIZE,
    text_column: str | None = None,
    progress: bool = False,
    allow_outside: bool = False,
    strip_accents: bool = True,
) -> dict:
    """Learn a WordPiece vocabulary from texts and write it to a file.

    The file has one token per line, and the same texts always give the same
    file. Texts are read as a stream; memory grows with the number of different
    words.

    Args:
        inputs: string or list of strings: the directory that `curate` wrote,
            other files that `curate` can read, or `.txt` files with one text
            per line, as files, folders or globs.
        output: string. The file to write.
        size: int. Number of tokens; few texts yield fewer. Defaults to
            `100_000`.
        text_column: string. Defaults to the first column with a usual name,
            such as `caption` or `text`.
        progress: bool. Whether to show a progress bar on standard error.
        allow_outside: bool. Whether links may lead out of a folder. Defaults
            to `False`.
        strip_accents: bool. Whether to strip accents from words, which is
            wrong for many scripts; see `AlignTokenizer`. Defaults to `True`.

    Returns:
        dict of `"output"`, `"tokens"`, `"texts"`, `"unreadable_lines"` and
        `"damaged_files"`.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: There is no text, or no text column.

    Example:

    ```python
    learn_vocabulary(["clean"], "vocabulary.txt", size=30_000)
    ```
    """
    counts = _no_counts()
    files = _find(inputs, allow_outside, counts)
    texts = read_texts(files, text_column, counts)
    with progress_steps(progress) as step:
        shown = _show(texts, counts, step)
        vocabulary = learn_word_pieces(shown, size, strip_accents)
    if not counts["texts"]:
        raise ValueError(
            f"There is no text in the {len(files)} input files, the first of "
            f"which is `{files[0]}`."
        )
    if counts["unreadable_lines"]:
        logger.warning("%d lines are unreadable.", counts["unreadable_lines"])
    with atomic_file(output) as temporary:
        temporary.write_text("\n".join(vocabulary) + "\n", "utf-8")
    return {"output": str(output), "tokens": len(vocabulary), **counts}


def _no_counts():
    return {"texts": 0, "unreadable_lines": 0, "damaged_files": []}


def read_texts(
    files: Iterable[str],
    text_column: str | None = None,
    counts: dict | None = None,
) -> Iterator[str]:
    """Yield the texts of files one by one.

    Args:
        files: list of paths.
        text_column: string. See `learn_vocabulary`.
        counts: dict. Its `"texts"`, `"unreadable_lines"` and
            `"damaged_files"` are updated.

    Yields:
        strings that are not blank.
    """
    counts = _no_counts() if counts is None else counts
    for file in files:
        try:
            for text in _texts(file, text_column, counts):
                if text and not text.isspace():
                    counts["texts"] += 1
                    yield text
        except UnfitColumn:
            raise
        except (OSError, ValueError) as error:
            logger.warning("Left out the rest of `%s`: %s", file, error)
            counts["damaged_files"].append(file)


def _find(inputs, allow_outside, counts):
    files = []
    for path in map(str, path_list(inputs)):
        # Read only `kept`; the dropped rows beside it have no text.
        path = kept_folder(path) or path
        found, outside = find_inputs([path], allow_outside, texts=True)
        files += found
        for refused in outside:
            logger.warning("Left out `%(file)s`: %(reason)s", refused)
            counts["damaged_files"].append(refused["file"])
    return files


def _texts(file, text_column, counts):
    if is_text(file):
        require_regular(file)
        with open_text(file, errors="replace") as lines:
            for line in read_lines(lines):
                counts["unreadable_lines"] += line is None
                yield line and line.rstrip("\r\n")
        return
    given = {"text": text_column}
    names, found = choose_columns(file, given)
    column = found["text"]
    if not names:
        raise ValueError("none of its lines can be read")
    if column is None:
        wanted = text_column or "text"
        raise UnfitColumn(
            f"`{Path(file)}` has no column `{wanted}`; name one with "
            f"`text_column`. Its columns are: {', '.join(names)}."
        )
    wanted = usual_names({"text": column}, given)
    for columns, bad_lines in read_batches(file, wanted, column):
        counts["unreadable_lines"] += bad_lines
        if column in columns:
            yield from read_strings(one_text_each(columns, column)[column])


def _show(texts, counts, step):
    step("Reading texts")
    for text in texts:
        if counts["texts"] % 10_000 == 0:
            step(f"Reading texts: {counts['texts']:,}", update=True)
        yield text
    step("Learning the vocabulary")
