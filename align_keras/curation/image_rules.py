"""Rules for images: their size, their contents, and test images."""

import functools
from typing import Annotated
from typing import Literal

from align_keras.curation.arrow_tables import integers
from align_keras.curation.arrow_tables import strings
from align_keras.curation.arrow_tables import table_of
from align_keras.curation.embedding_duplicates import find_near_images
from align_keras.curation.evaluation_images import hash_evaluation_images
from align_keras.curation.ingest import input_column
from align_keras.curation.rule_parts import bands
from align_keras.curation.rule_parts import bit_count
from align_keras.curation.rule_parts import drop_crowded
from align_keras.curation.rule_parts import drop_if
from align_keras.curation.rule_parts import drop_matching
from align_keras.curation.rule_parts import drop_unless
from align_keras.curation.rule_parts import int64
from align_keras.curation.rule_parts import near_in_band
from align_keras.curation.rule_parts import union
from align_keras.curation.rule_parts import within
from align_keras.curation.rules import Bound
from align_keras.curation.rules import Count
from align_keras.curation.rules import FileTable
from align_keras.curation.rules import Folder
from align_keras.curation.rules import Limits
from align_keras.curation.rules import Paths
from align_keras.curation.rules import Positive
from align_keras.curation.rules import Preset
from align_keras.curation.rules import needs_bound
from align_keras.curation.rules import rule
from align_keras.curation.rules import shows
from align_keras.curation.rules import shows_input


@rule("width", "height", check=needs_bound, why=shows("width", "height"))
def shorter_side(rows, *, above: Bound = None, at_least: Bound = None):
    """Drop images whose shorter side is too short, in pixels.

    The paper: "shorter dimension larger than 200 pixels", `above: 200`.
    """
    return drop_unless(
        rows,
        within(rows.width, above=above, at_least=at_least)
        & within(rows.height, above=above, at_least=at_least),
    )


@rule("width", "height", check=needs_bound, why=shows("width", "height"))
def aspect_ratio(rows, *, below: Bound = None, at_most: Bound = None):
    """Drop images whose longer side is too many times the shorter one.

    The paper: "aspect ratio smaller than 3", `below: 3`. The rule multiplies
    instead of dividing, so that 600 by 200 is exactly 3 on every engine.
    """
    kept = []
    for one, other in (
        (rows.width, rows.height),
        (rows.height, rows.width),
    ):
        if below is not None:
            kept.append(one < other * below)
        if at_most is not None:
            kept.append(one <= other * at_most)
    return drop_unless(rows, functools.reduce(lambda a, b: a & b, kept))


@rule("<column>", column_type="number", why=shows_input)
def adult_content(rows, *, column: str, at_most: Bound = 0.5):
    """Drop images whose adult-content score is too high.

    The score is a column of the input; a row without a score is kept.
    """
    return drop_if(rows, rows[input_column(column)] > at_most)


def _too_many_texts(evidence, row):
    count = evidence.members(row, "image_key", "text_key")
    return f"the image `{row['url']}` has {count} texts"


@rule("image_key", "text_key", why=_too_many_texts)
def texts_per_image(
    rows, *, at_most: Count, count: Literal["distinct", "rows"] = "distinct"
):
    """Drop images that have too many texts.

    The paper: "images with more than 1000 associated alt-texts",
    `at_most: 1000`.
    """
    return drop_crowded(rows, "image_key", "text_key", at_most, count)


# === Near-duplicates of test images ===


def _test_hashes(configured, rows, stages, key, tokenizer):
    given = configured.parameters

    def hashes():
        names = ("test_images", "mirrored", "allow_outside")
        found = hash_evaluation_images(*(given[name] for name in names))
        return table_of(
            phash=integers(found.keys()), test_image=strings(found.values())
        )

    return stages.arrow(f"{configured.name}-test_hashes", key, hashes)


def _nearest_hash(evidence, row):
    tests = evidence.table("test_hashes")
    bits = bit_count(tests.phash ^ int64(row["phash"]))
    tests = tests.select("test_image", bits=bits)
    tests = tests.order_by("bits", "test_image").limit(1)
    (found,) = evidence.collect(tests)
    return f"{found['bits']} bits from test image `{found['test_image']}`"


@rule(
    "phash",
    files=FileTable("test_hashes", {"phash": "int64"}, _test_hashes),
    why=_nearest_hash,
)
def near_duplicate(
    rows,
    *,
    test_images: Paths = (),
    distance: Annotated[int, Limits("be from 0 to 31 bits", 0, 31)] = 3,
    mirrored: bool = True,
    allow_outside: bool = False,
    listed,
):
    """Drop images whose perceptual hash is near that of a test image.

    Hashes within a Hamming distance of `distance` agree in at least one of
    `distance + 1` bands of bits, so only pairs that share a band are compared.
    A row without a hash is kept.
    """
    found = [
        near_in_band(rows, listed, mask, distance)
        for mask in bands(distance + 1)
    ]
    return union(found).distinct()


def _near_images(configured, rows, stages, key, tokenizer):
    return find_near_images(configured, rows, stages, key)


def _nearest_image(evidence, row):
    near = evidence.table("near_images")
    near = near.filter(near.image_key == row["image_key"])
    (found,) = evidence.collect(near)
    return f"cosine {found['cosine']:.3f} to test image `{found['test_image']}`"


def _not_more_shared_than_nearest(parameters):
    if parameters["shared"] > parameters["nearest"]:
        raise ValueError(
            "`shared` must not exceed `nearest`. "
            f"Received: {parameters['shared']}"
        )


@rule(
    "image_key",
    files=FileTable("near_images", {"image_key": "int64"}, _near_images),
    check=_not_more_shared_than_nearest,
    why=_nearest_image,
)
def near_duplicate_embedding(
    rows,
    *,
    test_images: Paths = (),
    images: Folder = "",
    model: Preset = "",
    clusters: Positive = 4096,
    nearest: Positive = 10,
    shared: Positive = 3,
    cosine: Annotated[float, Limits("be from -1 to 1", -1, 1)] = 0.975,
    allow_outside: bool = False,
    listed,
):
    """Drop images whose embedding is near that of a test image.

    This is the method of the paper's appendix A; see
    `embedding_duplicates.py`.
    """
    return drop_matching(rows, listed, "image_key")
