"""Rules for whole rows: by columns of the input, and repeated rows."""

from typing import Literal

from align_keras.curation.ingest import input_column
from align_keras.curation.rule_parts import drop_if
from align_keras.curation.rule_parts import drop_repeated
from align_keras.curation.rule_parts import drop_unless
from align_keras.curation.rule_parts import within
from align_keras.curation.rules import SignedBound
from align_keras.curation.rules import needs_bound
from align_keras.curation.rules import rule
from align_keras.curation.rules import shows_input


@rule("<column>", column_type="number", check=needs_bound, why=shows_input)
def number(
    rows,
    *,
    column: str,
    above: SignedBound = None,
    at_least: SignedBound = None,
    below: SignedBound = None,
    at_most: SignedBound = None,
    missing: Literal["keep", "drop"] = "drop",
):
    """Drop rows whose number in a column is out of bounds."""
    bounds = {"above": above, "at_least": at_least}
    bounds |= {"below": below, "at_most": at_most}
    kept = within(rows[input_column(column)], **bounds).fill_null(
        missing == "keep"
    )
    return drop_unless(rows, kept)


@rule("<column>", column_type="string", why=shows_input)
def one_of(
    rows,
    *,
    column: str,
    values: tuple[str, ...],
    missing: Literal["keep", "drop"] = "drop",
):
    """Drop rows whose string in a column is not listed, ignoring case."""
    values = [value.lower() for value in values]
    found = rows[input_column(column)].lower().isin(values)
    kept = found.fill_null(missing == "keep")
    return drop_unless(rows, kept)


@rule("<column>", column_type="string", why=shows_input)
def language(
    rows,
    *,
    column: str = "language",
    keep: tuple[str, ...],
    missing: Literal["keep", "drop"] = "drop",
):
    """Drop texts in other languages, by a column of the input."""
    return one_of(rows, column=column, values=keep, missing=missing)


def _image_key(identity):
    return "phash" if identity == "phash" else "image_key"


def _first_pair(evidence, row):
    key = _image_key(evidence.parameters["identity"])
    first = evidence.first(row, key, "text_key")
    return f"row {first} has the same text and image"


@rule("text_key", "<identity>", why=_first_pair)
def repeated_pairs(
    rows,
    *,
    identity: Literal["phash", "image"] = "phash",
    among: Literal["raw", "remaining"] = "raw",
):
    """Drop repeated pairs of image and text, except the first.

    COYO-700M: `identity: phash`, which identifies images by their perceptual
    hash; `image` identifies them by the configuration's `image_identity`. A
    row without a hash or without a text repeats nothing. With `among: raw`,
    another rule may drop the first pair, and then none stays; with
    `remaining`, the rule sees only the rows that the rules before it left.
    """
    return drop_repeated(rows, (_image_key(identity), "text_key"))


# === Always applied ===


def _what_is_missing(evidence, row):
    return "no text" if row["text_key"] is None else "no image"


@rule(always=True, why=_what_is_missing)
def unusable(rows):
    """Drop rows without a text, or without anything that names an image."""
    return drop_if(rows, rows.image_key.isnull() | rows.text_key.isnull())


def _first_of_id(evidence, row):
    first = evidence.first(row, "id_key")
    return f"the id {row['id']} already occurred in row {first}"


@rule(always=True, why=_first_of_id)
def repeated_ids(rows):
    """Drop rows whose own id occurred before; the first one stays."""
    return drop_repeated(rows, ("id_key",))
