"""Format a diagnosis as a table for the terminal and as an HTML page."""

from collections.abc import Sequence

from align_keras.io import svg
from align_keras.io.html_page import escape
from align_keras.io.html_page import page
from align_keras.io.html_page import scrolling
from align_keras.io.html_page import thousands
from align_keras.io.html_page import tile

WIDTH = 960
_WAYS = {
    "image_to_text": ("images → texts", "texts"),
    "text_to_image": ("texts → images", "images"),
}
_STYLE = """
.sheet{display:grid;gap:16px;margin-top:20px;
grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}
figure{margin:0;padding:12px;background:var(--wash);border-radius:12px}
figure img{width:100%;height:150px;object-fit:contain;display:block}
figcaption p{margin:10px 0 0;font-size:14px;overflow-wrap:anywhere;
color:var(--ink)}figcaption p.wrong{color:var(--soft)}
figcaption b{font-variant-numeric:tabular-nums;margin-right:6px}
.hub{height:40px;vertical-align:middle;margin-right:8px}
td:last-child,th:last-child{text-align:left}
"""


def describe_diagnosis(found: dict) -> str:
    """Format a diagnosis for the terminal.

    Args:
        found: dict. What `diagnose` returns.

    Returns:
        A string: the model and the data, and each number.
    """
    lines = [f"{found['model']} on {_counted(found)}"]
    rows = [(name, value) for name, value, _ in measures(found)]
    width = max(len(name) for name, _ in rows)
    lines += [f"{name:{width}}{value:>10}" for name, value in rows]
    return "\n".join(lines)


def measures(found: dict) -> list[tuple[str, str, str]]:
    """List the numbers of a diagnosis.

    Args:
        found: dict. What `diagnose` returns.

    Returns:
        A list of tuples of strings: name, value and meaning.
    """
    cosines, softmax = found["cosines"], found["softmax"]
    rows = [
        (
            "alignment",
            _number(found["alignment"]),
            "mean squared distance between an image and its text: 0 the same, "
            "2 orthogonal",
        ),
        *(
            (
                f"uniformity of {kind}s",
                _number(found[f"{kind}_uniformity"]),
                "log of the mean of exp(−2‖x − x′‖²) over every two of "
                f"{thousands(found['uniformity_rows'][kind])}{_of(found, kind)}"
                ": 0 in one place, −4 evenly spread",
            )
            for kind in ("image", "text")
        ),
        (
            "modality gap",
            _number(found["modality_gap"]),
            "distance between the mean image and the mean text",
        ),
        (
            "modality separation",
            _number(found["modality_separation"]),
            "balanced accuracy of the plane halfway between the means: 0.5 "
            "mixed, 1 apart",
        ),
        (
            "cosine of pairs",
            _number(cosines["pair_mean"]),
            f"mean of {thousands(found['pairs'])}",
        ),
        (
            "cosine of non-pairs",
            _number(cosines["non_pair_mean"]),
            f"mean of {thousands(cosines['non_pairs_compared'])}"
            + ", drawn at random" * _is_drawn(found),
        ),
        (
            "AUC",
            _number(cosines["auc"]),
            "probability that a pair has a greater cosine than a non-pair",
        ),
    ]
    if softmax is not None:
        chance = _number(1 / softmax["batch"])
        rows.append(
            (
                "temperature",
                f"{softmax['temperature']:.4g}",
                "what cosines are divided by",
            )
        )
        rows += [
            (
                f"true match, {words}",
                _number(softmax[way]["mean_probability"]),
                f"mean probability among {thousands(softmax['batch'])}; "
                f"chance {chance}",
            )
            for way, (words, _) in _WAYS.items()
        ]
    for way, (words, kind) in _WAYS.items():
        hubs = found["hubness"][way]
        rows += [
            (
                f"hubness, {words}",
                _number(hubs["skewness"]),
                f"skewness of how often {kind} are among the {hubs['k']} "
                "nearest: 0 evenly, above 1 hubs",
            ),
            (
                f"never retrieved, {words}",
                _number(hubs["never_retrieved"]),
                f"share of {kind} that are among the {hubs['k']} nearest of "
                "no query",
            ),
        ]
    return rows


def write_diagnosis_page(
    found: dict,
    keys: Sequence[str],
    texts: Sequence[str],
    small: dict[int, str],
) -> str:
    """Render a diagnosis as an HTML page.

    Args:
        found: dict. The diagnosis, with indices of images and texts.
        keys: sequence of strings. The names of the images.
        texts: sequence of strings.
        small: dict from the index of an image to the data URL of its
            thumbnail. Images without one are only named.

    Returns:
        A string, a complete HTML page without external links.
    """
    body = [
        "<h1>Diagnosis</h1>",
        f"<p>{escape(found['model'])} on {escape(_counted(found))}.</p>",
        '<div class="tiles">',
        tile(_number(found["alignment"]), "alignment of pairs"),
        tile(_number(found["modality_gap"]), "modality gap"),
        tile(_number(found["cosines"]["auc"]), "AUC of pairs"),
        tile(_temperature(found), "temperature"),
        "</div>",
        '<div class="scroll"><table><tr><th>Measure<th>Value<th>Meaning</tr>',
        *(
            f"<tr><td>{name}<td>{value}<td><small>{meaning}</small></tr>"
            for name, value, meaning in measures(found)
        ),
        "</table></div>",
        "<h2>Pairs and non-pairs</h2>",
        '<p class="key"><i style="background:var(--kept)"></i>cosines of '
        'pairs<i style="background:var(--gone)"></i>cosines of images and '
        "texts that are not pairs, as shares of each</p>",
        scrolling(
            _plot(
                found["cosines"]["edges"],
                [
                    ("kept", "pairs", found["cosines"]["pairs"]),
                    ("gone", "non-pairs", found["cosines"]["non_pairs"]),
                ],
            )
        ),
        *_softmax(found["softmax"]),
        *_hubs(found["hubness"], keys, texts, small),
        *_sheet(found["wrong_texts"], keys, texts, small),
    ]
    return page("Diagnosis", body, _STYLE)


def _softmax(softmax):
    yield "<h2>Temperature</h2>"
    if softmax is None:
        yield (
            "<p>The temperature of this model is not known: give it with "
            "<code>--temperature</code>.</p>"
        )
        return
    yield (
        '<p class="key"><i style="background:var(--kept)"></i>images → texts'
        '<i style="background:var(--gone)"></i>texts → images: the '
        "probability that the softmax gives the true match among "
        f"{thousands(softmax['batch'])}; batches: "
        f"{thousands(softmax['batches'])}</p>"
    )
    styles = zip(("kept", "gone"), _WAYS.items(), strict=True)
    yield scrolling(
        _plot(
            softmax["edges"],
            [
                (style, words, softmax[way]["histogram"])
                for style, (way, (words, _)) in styles
            ],
        )
    )


def _hubs(hubness, keys, texts, small):
    yield "<h2>Hubs</h2>"
    yield (
        "<p>What is near most queries, whatever they ask, and so crowds out "
        "others.</p>"
    )
    for way, (words, kind) in _WAYS.items():
        hubs = hubness[way]
        yield (
            f"<details open><summary>{words} <small>how often {kind} are among "
            f"the {hubs['k']} nearest</small></summary><ul>"
        )
        for row in hubs["hubs"]:
            index, image = row["index"], ""
            if way == "text_to_image" and index in small:
                image = f'<img class="hub" alt="" src="{small[index]}">'
            name = escape((texts if way == "image_to_text" else keys)[index])
            yield (
                f'<li dir="auto">{image}{name or "<em>no text</em>"}'
                f"<small>{thousands(row['occurrences'])} times</small></li>"
            )
        yield "</ul></details>"


def _sheet(rows, keys, texts, small):
    yield "<h2>Nearest wrong captions</h2>"
    yield (
        "<p>Images, sorted by how much nearer another image's caption is than "
        "their own: the cosine and their own caption, then the wrong "
        'one.</p><div class="sheet">'
    )
    for row in rows:
        name = escape(keys[row["image"]])
        image = f"<small>{name}</small>"
        if row["image"] in small:
            image = f'<img alt="{name}" src="{small[row["image"]]}">'
        yield f"<figure>{image}<figcaption>"
        for style, text, cosine in (
            ("own", "text", "cosine"),
            ("wrong", "wrong_text", "wrong_cosine"),
        ):
            words = escape(texts[row[text]]) or "<em>no text</em>"
            yield (
                f'<p class="{style}" dir="auto"><b>{_number(row[cosine])}</b>'
                f"{words}</p>"
            )
        yield "</figcaption></figure>"
    yield "</div>"


def _plot(edges, series):
    """Draw histograms with the same bins, as the shares of each."""
    held = [n for n in range(len(edges) - 1) if any(c[n] for _, _, c in series)]
    first, last = (held[0], held[-1] + 1) if held else (0, len(edges) - 1)
    totals = [sum(counts) or 1 for _, _, counts in series]
    tallest = max(
        counts[n] / total
        for (_, _, counts), total in zip(series, totals, strict=True)
        for n in range(first, last)
    )
    step = WIDTH / (last - first)
    width = step / len(series)
    parts = []
    for place, n in enumerate(range(first, last)):
        low, high = edges[n], edges[n + 1]
        drawn = zip(series, totals, strict=True)
        for number, ((style, name, counts), total) in enumerate(drawn):
            height = 170 * counts[n] / total / (tallest or 1)
            tip = f"{low:g} to {high:g}: {counts[n]:,} of {total:,} {name}"
            x = place * step + number * width
            parts.append(
                svg.bar(x, 190 - height, 0.92 * width, height, style, tip)
            )
    parts.append(f'<line class="axis" x1="0" x2="{WIDTH}" y1="190" y2="190"/>')
    every = -(-(last - first) // 20)
    for place, edge in enumerate(edges[first : last + 1]):
        if place % every == 0:
            # The labels at both ends must not leave the drawing.
            anchor = {0: "start", last - first: "end"}.get(place, "middle")
            label = f"{edge:g}"
            parts.append(svg.text(place * step, 208, label, anchor, "soft", 11))
    return svg.drawing(WIDTH, 216, parts)


def _counted(found):
    parts = [
        f"{thousands(found['images'])} images",
        f"{thousands(found['captions'])} captions",
    ]
    if found["captions"] != found["texts"]:
        parts.append(f"{thousands(found['texts'])} of them different")
    notes = [
        f"{thousands(found[name])} {words}"
        for name, words in (
            ("images_without_text", "without a caption"),
            ("images_skipped", "left out as not readable"),
        )
        if found[name]
    ]
    line = f"{found['dataset']}: {', '.join(parts)}"
    return line + (f" ({', '.join(notes)})" if notes else "")


def _of(found, kind):
    rows, total = found["uniformity_rows"][kind], found[f"{kind}s"]
    return f" of {thousands(total)}" if rows < total else ""


def _is_drawn(found):
    total = found["images"] * found["texts"] - found["pairs"]
    return found["cosines"]["non_pairs_compared"] < total


def _temperature(found):
    softmax = found["softmax"]
    return "–" if softmax is None else f"{softmax['temperature']:.4g}"


def _number(value):
    # Adding 0.0 removes the sign of a negative zero.
    return "–" if value is None else f"{round(value, 4) + 0.0:.4f}"
