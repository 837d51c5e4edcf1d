"""Write the audit as one self-contained HTML page."""

from align_keras.curation import audit_plots
from align_keras.io.html_page import escape
from align_keras.io.html_page import page
from align_keras.io.html_page import percent
from align_keras.io.html_page import scrolling
from align_keras.io.html_page import thousands
from align_keras.io.html_page import tile

# Descriptions of the defects that reading counts.
DEFECTS = {
    "null_texts": "texts that were null",
    "blank_texts": "texts that were empty or blank",
    "cut_texts": "texts that were cut at the longest length",
    "invalid_utf8_texts": "texts with bytes that are not UTF-8 (replaced)",
    "invalid_utf8_fields": "other fields with bytes that are not UTF-8",
    "images_without_path": "images in the file itself, without a path",
    "without_image": "rows without anything that names an image",
    "invalid_sizes": "sizes that are negative, zero or not whole numbers",
    "without_size": "rows without both width and height",
    "invalid_numbers": "fields that should be numbers and are not",
    "invalid_hashes": "perceptual hashes that are not 64 bits",
    "without_phash": "rows without a perceptual hash",
    "unreadable_lines": "lines that could not be read",
    "unreadable_images": "images that are missing or not readable",
    "images_outside_folder": "images outside the folder, which are not read",
}
MEASURES = {
    "shorter_side": "Shorter side, pixels",
    "aspect_ratio": "Longer side / shorter side",
    "tokens": "Unigrams of a text",
    "characters": "Characters of a text",
    "score": "Score of image and text",
}


def write_audit_page(audit: dict) -> str:
    """Render an audit as HTML.

    Args:
        audit: dict, as `audit_run` returns it.

    Returns:
        string, a complete HTML page that loads nothing else.
    """
    kept, rows = audit["kept"], audit["rows"]
    share = percent(kept, rows)
    body = [
        "<h1>Curation audit</h1>",
        f"<p>{thousands(kept)} of {thousands(rows)} pairs are kept; every "
        "other row is accounted for below and in <code>dropped/</code>.</p>",
        '<div class="tiles">',
        tile(thousands(rows), "pairs came in"),
        tile(thousands(kept), f"pairs are kept, {share}"),
        tile(thousands(rows - kept), "pairs are dropped"),
        tile(
            str(audit["reading"]["files"]),
            f"files, {len(audit['reading']['damaged_files'])} of them left out",
        ),
        "</div>",
        "<h2>Rule after rule</h2>",
        "<p>How many pairs are left when the rules are applied in this "
        "order.</p>",
        scrolling(audit_plots.funnel(rows, audit["rules"])),
        *_rules(audit),
        "<h2>Before and after</h2>",
        '<p class="key"><i style="background:var(--gone)"></i>all pairs'
        '<i style="background:var(--kept)"></i>kept pairs, and their share '
        "of all pairs in per cent</p><p>Each bar ends where the next begins. "
        "Rows without the value are left out.</p>",
        '<div class="plots">',
        *(
            audit_plots.histogram(
                title,
                audit["histograms"][name],
                audit["scores"]["lowest"] if name == "score" else {},
            )
            for name, title in MEASURES.items()
            if name in audit["histograms"]
        ),
        "</div>",
        *_scores(audit["scores"]),
        "<h2>Rules that drop the same rows</h2>",
        "<p>Of the rows that the rule on the left drops when applied alone, "
        "the percentage that the rule above drops too.</p>",
        scrolling(
            audit_plots.heat_map(
                [r["name"] for r in audit["rules"]], audit["overlap"]
            )
        ),
        *_reading(audit["reading"]),
        *_examples(audit["rules"]),
    ]
    return page("Curation audit", body)


def _rules(audit):
    yield "<h2>What each rule drops</h2>"
    yield (
        '<p class="key"><i style="background:var(--alone)"></i>alone, as if '
        'it were the only rule<i style="background:var(--kept)"></i>in '
        "sequence, of what the rules before it left"
        '<i style="background:var(--only)"></i>only it, and no other rule</p>'
    )
    if audit["counted_rows"] == "remaining":
        yield (
            "<p>Counted on remaining rows: each rule saw only what the rules "
            "before it left, so all three numbers are counted in sequence, and "
            "no two rules drop the same row.</p>"
        )
    yield scrolling(audit_plots.rule_bars(audit["rules"]))
    yield (
        '<div class="scroll"><table class="rules"><tr><th>Rule<th>Settings'
        "<th>alone<th>in sequence<th>only it<th>left</tr>"
    )
    for rule in audit["rules"]:
        settings = ", ".join(
            f"{name} {_setting(value)}"
            for name, value in rule["parameters"].items()
            if value not in (None, "", [], ())
        )
        cells = [
            rule["dropped"]["alone"],
            rule["dropped"]["in_sequence"],
            rule["dropped"]["only"],
            rule["remaining"],
        ]
        numbers = "".join(f"<td>{thousands(cell)}" for cell in cells)
        account = ", ".join(
            f"{words}: {_setting(number)}"
            for words, number in rule["account"].items()
        )
        settings += f"; {account}" if account else ""
        yield (
            f"<tr><td>{escape(rule['name'])}<td><small>{escape(settings)}"
            f"</small>{numbers}</tr>"
        )
    for name, reason in audit["rules_left_out"].items():
        yield (
            f"<tr><td>{escape(name)}<td colspan=5><small>not applied: "
            f"{escape(reason)}</small></tr>"
        )
    yield "</table></div>"


def _scores(scores):
    if scores is None:
        return
    models = ", ".join(
        f"{thousands(model['scores'])} by the model {escape(model['model'])}"
        for model in scores["models"]
    )
    yield (
        f"<p>Scores: {models}. {thousands(scores['rows'])} rows have one, "
        f"{thousands(scores['rows_without'])} have none; of these "
        f"{thousands(scores['kept_without'])} are kept.</p>"
    )


def _setting(value):
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.12g}"
    return str(value)


def _reading(reading):
    yield "<h2>What the files held</h2>"
    yield "<p>Each of these has a defined outcome; none stops a run.</p>"
    yield '<div class="scroll"><table>'
    for name, words in DEFECTS.items():
        if reading["counts"].get(name):
            count = thousands(reading["counts"][name])
            yield f"<tr><td>{words}<td>{count}</tr>"
    for damaged in reading["damaged_files"]:
        reason = escape(damaged["reason"])
        yield (
            f"<tr><td>{escape(damaged['file'])}<br><small>left out: {reason}"
            "</small><td>left out</tr>"
        )
    yield "</table></div>"


def _examples(rules):
    yield "<h2>Examples</h2>"
    yield (
        "<p>Rows that each rule drops, starting with those that no other rule "
        "drops.</p>"
    )
    for rule in rules:
        if not rule["examples"]:
            continue
        count = thousands(rule["dropped"]["alone"])
        yield (
            f"<details><summary>{escape(rule['name'])} <small>{count} rows"
            "</small></summary><ul>"
        )
        for row in rule["examples"]:
            size = f"{row['width'] or '?'}×{row['height'] or '?'}"
            about = f"row {row['row_id']} · {size} · {row['url'] or 'no url'}"
            text = escape(row["text"]) or "<em>no text</em>"
            yield f'<li dir="auto">{text}<small>{escape(about)}</small></li>'
        yield "</ul></details>"
