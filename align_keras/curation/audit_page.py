"""The audit as one HTML page that needs nothing else."""

import html

from align_keras.curation import audit_plots

# What reading counts, in words.
DEFECTS = {
    "null_texts": "texts that were null",
    "blank_texts": "texts that were empty or blank",
    "cut_texts": "texts that were cut at the longest length",
    "invalid_utf8_texts": "texts with bytes that are not UTF-8 (replaced)",
    "invalid_utf8_fields": "other fields with bytes that are not UTF-8",
    "images_without_path": "images in the file itself, without a path",
    "without_image": "rows without anything that names an image",
    "invalid_sizes": "sizes that are negative, zero or no whole number",
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

_STYLE = """
:root{--ink:#1c2430;--soft:#667085;--line:#e4e7ec;--paper:#fff;--wash:#f7f8fa;
--kept:#2a78d6;--gone:#c3cad6;--alone:#9db8e0;--only:#0f3d7a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;
--line:#2b3442;--paper:#12161d;--wash:#191f29;--kept:#5b9df0;--gone:#445063;
--alone:#3b5f93;--only:#c5dcff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1040px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:30px;margin:0 0 4px;letter-spacing:-.02em}
h2{font-size:20px;margin:56px 0 4px}p{margin:4px 0 16px;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:12px;margin:28px 0}.tile{background:var(--wash);border-radius:12px;
padding:16px 20px}.tile b{display:block;font-size:28px;letter-spacing:-.02em}
.tile span{color:var(--soft);font-size:14px}
table{border-collapse:collapse;width:100%;font-size:14px;
font-variant-numeric:tabular-nums}th{color:var(--soft);font-weight:500}
th,td{text-align:right;padding:8px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,.rules :is(th,td):nth-child(2){text-align:left}
.rules{margin-top:24px}small{color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);
font:13px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.kept{fill:var(--kept)}.gone{fill:var(--gone)}.alone{fill:var(--alone)}
.only{fill:var(--only)}.axis{stroke:var(--line)}
.cut{stroke:var(--only);stroke-dasharray:4 3}
svg .on{fill:var(--paper)}
.plots{display:grid;gap:28px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.key i{display:inline-block;width:12px;height:12px;border-radius:3px;
margin:0 6px 0 14px;vertical-align:-1px}.key i:first-child{margin-left:0}
details{border-bottom:1px solid var(--line);padding:10px 0}
summary{cursor:pointer;font-weight:500}summary small{font-weight:400}
li{margin:8px 0;overflow-wrap:anywhere}li small{display:block}
.scroll{overflow-x:auto}.scroll>svg{min-width:680px}
@media(max-width:560px){main{padding:28px 16px 64px}h2{margin-top:40px}}
"""


def write_audit_page(audit: dict) -> str:
    """Draw an audit.

    Args:
        audit: dict, as `audit_run` makes it.

    Returns:
        string, a whole HTML page without links to anything.
    """
    kept, rows = audit["kept"], audit["rows"]
    share = audit_plots.percent(kept, rows)
    body = [
        "<h1>Curation audit</h1>",
        f"<p>{_count(kept)} of {_count(rows)} pairs are kept; every other row "
        "is accounted for below and in <code>dropped/</code>.</p>",
        '<div class="tiles">',
        _tile(_count(rows), "pairs came in"),
        _tile(_count(kept), f"pairs are kept, {share}"),
        _tile(_count(rows - kept), "pairs are dropped"),
        _tile(
            str(audit["reading"]["files"]),
            f"files, {len(audit['reading']['damaged_files'])} of them left out",
        ),
        "</div>",
        "<h2>Rule after rule</h2>",
        "<p>How many pairs are left when the rules are applied in this "
        "order.</p>",
        _scrolling(audit_plots.funnel(rows, audit["rules"])),
        *_rules(audit),
        "<h2>Before and after</h2>",
        '<p class="key"><i style="background:var(--gone)"></i>all pairs'
        '<i style="background:var(--kept)"></i>kept pairs, and their share '
        "of all in per cent</p><p>A bar ends where the next begins. Rows "
        "without the value are left out.</p>",
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
        "<p>Of the rows that the rule on the left drops alone, how many in a "
        "hundred the rule above drops too.</p>",
        _scrolling(
            audit_plots.heat_map(
                [r["name"] for r in audit["rules"]], audit["overlap"]
            )
        ),
        *_reading(audit["reading"]),
        *_examples(audit["rules"]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Curation audit</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _rules(audit):
    yield "<h2>What each rule drops</h2>"
    yield (
        '<p class="key"><i style="background:var(--alone)"></i>alone, were it '
        'the only rule<i style="background:var(--kept)"></i>in sequence, of '
        'what the rules before it left<i style="background:var(--only)"></i>'
        "only it, and no other rule</p>"
    )
    if audit["counted_rows"] == "remaining":
        yield (
            "<p>Counted on remaining rows: each rule saw only what those "
            "before it left, so all three numbers are those in sequence, and "
            "no two rules drop the same row.</p>"
        )
    yield _scrolling(audit_plots.rule_bars(audit["rules"]))
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
        numbers = "".join(f"<td>{_count(cell)}" for cell in cells)
        account = ", ".join(
            f"{words}: {_setting(number)}"
            for words, number in rule["account"].items()
        )
        settings += f"; {account}" if account else ""
        yield (
            f"<tr><td>{_escape(rule['name'])}<td><small>{_escape(settings)}"
            f"</small>{numbers}</tr>"
        )
    for name, reason in audit["rules_left_out"].items():
        yield (
            f"<tr><td>{_escape(name)}<td colspan=5><small>not applied: "
            f"{_escape(reason)}</small></tr>"
        )
    yield "</table></div>"


def _scores(scores):
    if scores is None:
        return
    models = ", ".join(
        f"{_count(model['scores'])} by the model {_escape(model['model'])}"
        for model in scores["models"]
    )
    yield (
        f"<p>Scores: {models}. {_count(scores['rows'])} rows have one, "
        f"{_count(scores['rows_without'])} have none; of these "
        f"{_count(scores['kept_without'])} are kept.</p>"
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
            count = _count(reading["counts"][name])
            yield f"<tr><td>{words}<td>{count}</tr>"
    for damaged in reading["damaged_files"]:
        reason = _escape(damaged["reason"])
        yield (
            f"<tr><td>{_escape(damaged['file'])}<br><small>left out: {reason}"
            "</small><td>left out</tr>"
        )
    yield "</table></div>"


def _examples(rules):
    yield "<h2>Examples</h2>"
    yield (
        "<p>Rows that each rule drops, first those that no other rule does.</p>"
    )
    for rule in rules:
        if not rule["examples"]:
            continue
        count = _count(rule["dropped"]["alone"])
        yield (
            f"<details><summary>{_escape(rule['name'])} <small>{count} rows"
            "</small></summary><ul>"
        )
        for row in rule["examples"]:
            size = f"{row['width'] or '?'}×{row['height'] or '?'}"
            about = f"row {row['row_id']} · {size} · {row['url'] or 'no url'}"
            text = _escape(row["text"]) or "<em>no text</em>"
            yield f'<li dir="auto">{text}<small>{_escape(about)}</small></li>'
        yield "</ul></details>"


def _scrolling(plot):
    return f'<div class="scroll">{plot}</div>'


def _tile(number, words):
    return f'<div class="tile"><b>{number}</b><span>{words}</span></div>'


def _count(number):
    return f"{number:,}"


def _escape(text):
    # What cannot be shown would break the page or fool the reader.
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return html.escape(shown)
