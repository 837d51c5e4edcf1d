"""Draw queries and their results in one image."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from align_keras.io.atomic import atomic_file

PAPER = (250, 249, 246)
INK = (42, 46, 54)
QUIET = (128, 132, 140)
LINE = (228, 225, 218)
RIGHT = (47, 133, 90)
WRONG = (186, 92, 72)

MARGIN = 72
THUMBNAIL = 132
GAP = 22
QUERY_WIDTH = 360
ROW_HEIGHT = THUMBNAIL + 66
SECTION_HEIGHT = 62
_SMOOTH = 4  # For antialiasing, curves are drawn this much larger.


class Match(NamedTuple):
    """One image that a query found.

    Attributes:
        image: path, encoded bytes, `PIL.Image.Image` or uint8 array.
        score: float. Its similarity to the query.
        correct: bool. Whether it is a correct result; `None` if unknown.
    """

    image: object
    score: float
    correct: bool | None = None


class Row(NamedTuple):
    """A query and its results.

    Attributes:
        text: string. The words of the query, added to the image if there is
            one. `None` for a query without words.
        results: list of `Match`, best first.
        image: image that the query starts from, in a form that `Match.image`
            takes.
        minus_text: string. Words that were subtracted.
        section: string. Heading of this row and the rows after it.
    """

    text: str | None
    results: list
    image: object = None
    minus_text: str | None = None
    section: str | None = None


def contact_sheet(
    rows: list[Row],
    path: str | Path,
    title: str = "Search results",
    subtitle: str | None = None,
) -> Image.Image:
    """Write a PNG file that shows queries and their top results.

    Each row shows a query on the left, either words or an image with words to
    add and subtract. Its results and their scores are on the right. A correct
    result has a green frame and a tick.

    Args:
        rows: list of `Row`, at least one.
        path: string or `pathlib.Path`. The PNG file to write.
        title: string. Defaults to `"Search results"`.
        subtitle: string. Smaller text below the title, with its line breaks.
            Defaults to `None`.

    Returns:
        A `PIL.Image.Image`, the sheet.

    Raises:
        ValueError: There are no rows, or a row has no results.

    Example:

    ```python
    results = [Match("bus.jpg", 0.71, True), Match("tram.jpg", 0.55, False)]
    contact_sheet([Row("a red bus", results)], "sheet.png")
    ```
    """
    if not rows:
        raise ValueError("A contact sheet needs rows. Received: none")
    for row in rows:
        if not row.results:
            raise ValueError(f"A row has no results. Received: {row!r}")
    columns = max(len(row.results) for row in rows)
    subtitles = subtitle.splitlines() if subtitle else []
    top = MARGIN + 58 + 28 * len(subtitles)
    width = 2 * MARGIN + QUERY_WIDTH + columns * (THUMBNAIL + GAP) - GAP
    height = top + len(rows) * ROW_HEIGHT + MARGIN
    height += SECTION_HEIGHT * sum(bool(row.section) for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(38), anchor="ls")
    for number, line in enumerate(subtitles):
        y = MARGIN + 40 + 28 * number
        draw.text((MARGIN, y), line, QUIET, _font(19), anchor="ls")
    y = top
    for row in rows:
        if row.section:
            _draw_section(draw, row.section, y, width)
            y += SECTION_HEIGHT
        _draw_query(sheet, row, y)
        for column, result in enumerate(row.results):
            x = MARGIN + QUERY_WIDTH + column * (THUMBNAIL + GAP)
            _draw_result(sheet, result, x, y)
        y += ROW_HEIGHT
    with atomic_file(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return sheet


def _draw_section(draw, text, y, width):
    draw.line([(MARGIN, y + 4), (width - MARGIN, y + 4)], LINE, 1)
    draw.text((MARGIN, y + 36), text, QUIET, _font(17), anchor="ls")


def _draw_query(sheet, row, y):
    """Draw the image of a query, if any, and its words, centred vertically."""
    x, width = MARGIN, QUERY_WIDTH - 44
    middle = y + THUMBNAIL // 2
    if row.image is not None:
        _paste_rounded(sheet, row.image, x, y)
        x, width = x + THUMBNAIL + 20, width - THUMBNAIL - 20
        words = [("+", row.text, RIGHT), ("-", row.minus_text, WRONG)]
    else:
        words = [("", row.text, INK), ("-", row.minus_text, WRONG)]
    size = 22
    font = _font(size)
    lines = []
    for sign, text, color in words:
        indent = 30 if sign else 0
        for line in _wrap(text, font, width - indent):
            lines.append((sign, line, indent, color))
            sign = ""
    line_height = 32
    baseline = middle - line_height * (len(lines) - 1) / 2 + size * 0.34
    draw = ImageDraw.Draw(sheet)
    for sign, line, indent, color in lines:
        if sign:
            _draw_sign(sheet, sign, x, round(baseline - size * 0.34), color)
        draw.text((x + indent, baseline), line, INK, font, anchor="ls")
        baseline += line_height


def _draw_sign(sheet, sign, x, middle, color):
    """Draw a plus or minus in a disc; the font has no proper minus sign."""
    size = 20 * _SMOOTH
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    pen.ellipse([0, 0, size - 1, size - 1], fill=255)
    near, far, half = 0.27 * size, 0.73 * size, size // 2
    pen.line([(near, half), (far, half)], fill=0, width=2 * _SMOOTH)
    if sign == "+":
        pen.line([(half, near), (half, far)], fill=0, width=2 * _SMOOTH)
    mask = mask.reduce(_SMOOTH)
    sheet.paste(color, (x, middle - mask.height // 2), mask)


def _draw_result(sheet, result, x, y):
    frame = RIGHT if result.correct else None
    _paste_rounded(sheet, result.image, x, y, frame)
    draw = ImageDraw.Draw(sheet)
    color = RIGHT if result.correct else QUIET
    draw.text(
        (x + THUMBNAIL / 2, y + THUMBNAIL + 26),
        f"{result.score:.2f}".replace("-0.00", "0.00"),
        color,
        _font(17),
        anchor="ms",
    )
    if result.correct:
        _draw_tick(sheet, x + THUMBNAIL - 14, y - 10)


def _draw_tick(sheet, x, y):
    size = 24 * _SMOOTH
    disc, tick = (Image.new("L", (size, size)) for _ in range(2))
    ImageDraw.Draw(disc).ellipse([0, 0, size - 1, size - 1], fill=255)
    points = [(0.29, 0.53), (0.44, 0.68), (0.72, 0.36)]
    ImageDraw.Draw(tick).line(
        [(px * size, py * size) for px, py in points],
        fill=255,
        width=round(2.4 * _SMOOTH),
        joint="curve",
    )
    sheet.paste(RIGHT, (x, y), disc.reduce(_SMOOTH))
    sheet.paste((255, 255, 255), (x, y), tick.reduce(_SMOOTH))


def _paste_rounded(sheet, image, x, y, frame=None):
    """Paste an image cropped to a square with rounded corners and a frame."""
    edge = 3 if frame else 1
    outer = THUMBNAIL + 2 * edge
    sheet.paste(frame or LINE, (x - edge, y - edge), _rounded(outer, 12 + edge))
    image = _open(image)
    side = min(image.size)
    left, top = ((extent - side) // 2 for extent in image.size)
    image = image.resize(
        (THUMBNAIL, THUMBNAIL),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
    )
    sheet.paste(image, (x, y), _rounded(THUMBNAIL, 12))


def _rounded(side, radius):
    mask = Image.new("L", (side * _SMOOTH, side * _SMOOTH))
    end = side * _SMOOTH - 1
    ImageDraw.Draw(mask).rounded_rectangle(
        [0, 0, end, end], radius * _SMOOTH, fill=255
    )
    return mask.reduce(_SMOOTH)


def _open(image):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    elif isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    elif isinstance(image, (str, os.PathLike)):
        image = Image.open(image)
    return image.convert("RGB")


def _wrap(text, font, width, max_lines=3):
    """Break a text into lines of at most `width` pixels."""
    lines = []
    for word in (text or "").split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1] += "…"
    for number, line in enumerate(lines):
        while len(line) > 1 and font.getlength(line) > width:
            line = line.rstrip("…")[:-1] + "…"
        lines[number] = line
    return lines


def _font(size):
    return ImageFont.load_default(size=size)
