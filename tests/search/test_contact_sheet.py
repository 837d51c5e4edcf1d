"""The contact sheet: what is on it, and where."""

import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from align_keras.search import draw_results
from align_keras.search.contact_sheet import GAP
from align_keras.search.contact_sheet import INK
from align_keras.search.contact_sheet import MARGIN
from align_keras.search.contact_sheet import PAPER
from align_keras.search.contact_sheet import QUERY_WIDTH
from align_keras.search.contact_sheet import RIGHT
from align_keras.search.contact_sheet import THUMBNAIL
from align_keras.search.contact_sheet import WRONG
from align_keras.search.contact_sheet import Match
from align_keras.search.contact_sheet import Row
from align_keras.search.contact_sheet import contact_sheet


def plain(color, size=(40, 40)):
    return Image.new("RGB", size, color)


def count(pixels, color, tolerance=2):
    difference = np.abs(pixels.astype(int) - color).max(axis=-1)
    return int((difference <= tolerance).sum())


def test_sheet_shows_each_result_in_its_order(tmp_path):
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    results = [Match(plain(c), 0.9 - i / 10) for i, c in enumerate(colors)]
    contact_sheet([Row("anything", results)], tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    left = []
    for color in colors:
        mask = np.abs(pixels.astype(int) - color).max(axis=2) <= 2
        y, x = np.nonzero(mask)
        # A square with rounded corners loses less than two percent.
        assert 0.98 * THUMBNAIL**2 < mask.sum() <= THUMBNAIL**2
        assert x.max() - x.min() + 1 == y.max() - y.min() + 1 == THUMBNAIL
        left.append(x.min())
    assert np.diff(left).tolist() == [THUMBNAIL + GAP] * 2
    assert left[0] == MARGIN + QUERY_WIDTH


def test_correct_results_are_marked_and_only_those(tmp_path):
    gray = plain((90, 90, 90))
    marked = {}
    for correct in (True, False, None):
        sheet = contact_sheet(
            [Row("q", [Match(gray, 0.5, correct)])], tmp_path / "s.png"
        )
        marked[correct] = count(np.asarray(sheet), RIGHT)
    # The frame alone has 4 sides of 3 pixels.
    assert marked[True] > 4 * 3 * (THUMBNAIL - 30)
    assert marked[False] == marked[None] == 0


def test_query_shows_words_image_and_signs(tmp_path):
    violet = (120, 40, 160)
    results = [Match(plain((10, 120, 120)), 0.5)]

    def query_of(row):
        sheet = contact_sheet([row], tmp_path / "s.png", title=" ")
        return np.asarray(sheet)[:, : MARGIN + QUERY_WIDTH]

    words = query_of(Row("a red bus", results))
    assert count(words, INK) > 100
    assert count(words, violet) == 0
    photo = query_of(Row(None, results, image=plain(violet)))
    assert count(photo, violet) > 0.98 * THUMBNAIL**2
    assert count(photo, INK) == 0
    both = query_of(Row("blue", results, plain(violet), minus_text="red"))
    assert count(both, violet) > 0.98 * THUMBNAIL**2
    assert count(both, INK) > 50
    assert count(both, RIGHT) > 50
    assert count(both, WRONG) > 50


@pytest.mark.parametrize("form", ["path", "string", "bytes", "array", "image"])
def test_images_come_in_any_form(tmp_path, form):
    color = (12, 140, 210)
    image = plain(color)
    image.save(tmp_path / "photo.png")
    file = io.BytesIO()
    image.save(file, "PNG")
    given = {
        "path": tmp_path / "photo.png",
        "string": str(tmp_path / "photo.png"),
        "bytes": file.getvalue(),
        "array": np.asarray(image),
        "image": image,
    }[form]
    sheet = contact_sheet([Row("q", [Match(given, 1)])], tmp_path / "s.png")
    assert count(np.asarray(sheet), color) > 0.98 * THUMBNAIL**2


def test_oblong_images_show_their_middle(tmp_path):
    image = plain((200, 0, 0), (300, 100))
    image.paste((0, 0, 200), (100, 0, 200, 100))
    sheet = contact_sheet([Row("q", [Match(image, 1)])], tmp_path / "s.png")
    pixels = np.asarray(sheet)
    assert count(pixels, (0, 0, 200)) > 0.9 * THUMBNAIL**2
    assert count(pixels, (200, 0, 0)) < 0.02 * THUMBNAIL**2


def test_long_words_stay_in_the_margin(tmp_path):
    results = [Match(plain((9, 9, 9)), 0.1)]
    text = "a " + "very " * 60 + "x" * 200
    sheet = contact_sheet([Row(text, results)], tmp_path / "s.png", title=" ")
    pixels = np.asarray(sheet)
    gutter = pixels[:, MARGIN + QUERY_WIDTH - 40 : MARGIN + QUERY_WIDTH - 2]
    assert count(gutter, PAPER, 0) == gutter[..., 0].size
    bottom = pixels[-MARGIN:]
    assert count(bottom, PAPER, 0) == bottom[..., 0].size
    assert count(pixels[:, : MARGIN + QUERY_WIDTH], INK) > 500


def test_sections_make_room(tmp_path):
    row = Row("q", [Match(plain((9, 9, 9)), 0.1)])
    short = contact_sheet([row, row], tmp_path / "s.png")
    long = contact_sheet([row._replace(section="One"), row], tmp_path / "s.png")
    assert long.height > short.height
    assert long.width == short.width


def test_results_are_drawn_but_no_embedding(tmp_path):
    red, path = Image.new("RGB", (40, 40), "red"), tmp_path / "s.png"
    red.save(tmp_path / "red.jpg")
    index = SimpleNamespace(
        thumbnail=lambda row: (tmp_path / "red.jpg").read_bytes()
    )
    results = [{"row": 0, "key": "red.jpg", "text": "", "score": 0.5}]
    with pytest.raises(ValueError, match=r"an embedding.*shape \(640,\)"):
        draw_results(index, results, path, image=np.ones(640, "float32"))
    assert not path.exists()
    drawn = []
    # A tensor is an image too.
    for image in (None, np.asarray(red), keras.ops.convert_to_tensor(red)):
        draw_results(index, results, path, "a bus", image)
        drawn.append(np.asarray(Image.open(path)))
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_array_equal(drawn[1], drawn[2])


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="needs rows"):
        contact_sheet([], tmp_path / "s.png")
    with pytest.raises(ValueError, match="'no hits'"):
        contact_sheet([Row("no hits", [])], tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
