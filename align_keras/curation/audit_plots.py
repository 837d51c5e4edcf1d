"""Draw the plots of the audit as SVG."""

import html
import itertools

from align_keras.io import svg

WIDTH = 960
LABEL = 190


def funnel(rows, rules):
    """Draw a bar of the rows that are left after each rule."""
    steps = [("all pairs", rows, 0)]
    for rule in rules:
        dropped = rule["dropped"]["in_sequence"]
        steps.append((rule["name"], rule["remaining"], dropped))
    scale = (WIDTH - LABEL - 230) / max(1, rows)
    parts = []
    for line, (name, left, dropped) in enumerate(steps):
        top = line * 30
        parts += [
            svg.text(LABEL - 12, top + 17, name, "end"),
            svg.bar(LABEL, top + 2, left * scale, 22, "kept"),
            svg.bar(LABEL + left * scale, top + 2, dropped * scale, 22, "gone"),
        ]
        note = f"{left:,}" + (f"  (−{dropped:,})" if dropped else "")
        end = LABEL + (left + dropped) * scale + 10
        parts.append(svg.text(end, top + 17, note, "start", "soft"))
    return svg.drawing(WIDTH, len(steps) * 30, parts)


def rule_bars(rules):
    """Draw three bars for each rule: alone, in sequence, only it."""
    longest = max([rule["dropped"]["alone"] for rule in rules] + [1])
    scale = (WIDTH - LABEL - 110) / longest
    parts = []
    for line, rule in enumerate(rules):
        top = line * 46
        parts.append(svg.text(LABEL - 12, top + 24, rule["name"], "end"))
        for place, (name, style) in enumerate(
            (("alone", "alone"), ("in_sequence", "kept"), ("only", "only"))
        ):
            count = rule["dropped"][name]
            y = top + 4 + place * 12
            parts.append(svg.bar(LABEL, y, count * scale, 10, style))
            parts.append(
                svg.text(LABEL + count * scale + 8, y + 9, f"{count:,}")
                if name == "alone"
                else ""
            )
    return svg.drawing(WIDTH, len(rules) * 46, parts)


def histogram(title, data, lines=None):
    """Draw bars of all rows, and in front of them bars of the kept rows.

    Args:
        title: string.
        data: dict of `"edges"`, `"before"` and `"after"`.
        lines: dict from names to the values at which to draw a line. The
            edges must then be evenly spaced.
    """
    names = _ranges(data["edges"])
    tallest = max([*data["before"], 1])
    step = 440 / len(names)
    parts = [svg.text(0, 18, title)]
    for place, name in enumerate(names):
        x = place * step
        before, after = data["before"][place], data["after"][place]
        tip = f"{name}: {before:,} before, {after:,} after"
        for count, style in ((before, "gone"), (after, "kept")):
            height = 156 * count / tallest
            bar = svg.bar(x + 1, 200 - height, step - 2, height, style, tip)
            parts.append(bar)
        if before:
            share = f"{100 * after / before:.0f}"
            top = 196 - 156 * before / tallest
            parts.append(
                svg.text(x + step / 2, top, share, "middle", "soft", 9)
            )
        if place:
            edge = f"{data['edges'][place - 1]:g}"
            parts.append(svg.text(x, 214, edge, "middle", "soft", 9))
    parts.append('<line class="axis" x1="0" x2="440" y1="200" y2="200"/>')
    for name, value in (lines or {}).items():
        edges = data["edges"]
        width = (edges[-1] - edges[0]) / max(1, len(edges) - 1) or 1
        place = 1 + (value - edges[0]) / width
        x = step * min(max(place, 0), len(names))
        parts += [
            f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="200">'
            f"<title>{html.escape(name)}: {value:g}</title></line>",
            svg.text(x + 4, 38, f"{name}: {value:.4g}", "start", "soft", 11),
        ]
    return svg.drawing(440, 224, parts)


def _ranges(edges):
    """Name each bar: below the first edge, …, from the last edge up."""
    whole = all(edge == int(edge) for edge in edges)
    names = [f"<{edges[0]:g}"]
    for low, high in itertools.pairwise(edges):
        if whole and high - low == 1:
            names.append(f"{low:g}")
        elif whole and high - low < 10:
            names.append(f"{low:g}–{high - 1:g}")
        else:
            names.append(f"{low:g} to below {high:g}")
    return [*names, f"≥{edges[-1]:g}"]


def heat_map(names, overlap):
    """Draw the share of each rule's rows that each other rule drops too."""
    cell = min(64, (WIDTH - LABEL) / max(1, len(names)))
    parts = []
    for column, name in enumerate(names):
        x = LABEL + (column + 0.5) * cell
        parts.append(
            f'<text transform="translate({x:.1f},104) rotate(-40)">'
            f"{html.escape(name)}</text>"
        )
    for row, name in enumerate(names):
        y = 112 + row * 34
        parts.append(svg.text(LABEL - 12, y + 22, name, "end"))
        for column in range(len(names)):
            total = overlap[row][row]
            share = overlap[row][column] / total if total else 0
            x = LABEL + column * cell
            parts.append(
                f'<rect class="kept" x="{x:.1f}" y="{y}" rx="4" '
                f'width="{cell - 4:.1f}" height="30" '
                f'opacity="{0.06 + 0.84 * share:.2f}"/>'
            )
            if total and column != row:
                shown = f"{100 * share:.0f}"
                middle = x + cell / 2 - 2
                style = "on" if share > 0.75 else ""
                parts.append(
                    svg.text(middle, y + 20, shown, "middle", style, 12)
                )
    return svg.drawing(WIDTH + 60, 120 + 34 * len(names), parts)
