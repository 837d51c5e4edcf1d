"""Results as tables: in the terminal, and as one Markdown file with plots."""

import math
from pathlib import Path

from align_keras.evaluation.paper import paper_rows_of
from align_keras.io.atomic import atomic_file

# Figures that are neither shares nor correlations.
_RANKS = "_median_rank"


def describe(result):
    """Put a result into lines for the terminal.

    Args:
        result: `Result`.

    Returns:
        A string: what was measured, and for each figure the model's value,
        chance where it is known, its 95% interval, and the paper's figures.
    """
    paper = paper_rows_of(result["task"], result["dataset"])
    lines = [_counts(result)]
    deviations = result.get("deviations", {})
    header = f"{'':26}{'model':>8}"
    header += f"{'± std':>8}" * bool(deviations)
    header += f"{'chance':>9}{'95% interval':>18}"
    lines.append(header + "".join(f"  {name}" for name in paper))
    for name in result.get("intervals", {}):
        line = f"{name.replace('_', ' '):26}"
        if name.endswith(_RANKS):
            low, high = result["intervals"][name]
            line += f"{_number(result[name], '8.1f')}{'':9}"
            line += f"{_number(low, '.1f')} – {_number(high, '.1f')}".rjust(18)
        else:
            line += _number(result[name], "8.1%")
            if deviations:
                line += _number(deviations.get(name), "8.1%")
            line += _number(result.get(f"chance_{name}"), "9.2%")
            line += _interval(result, name).rjust(18)
        for heading, figures in paper.items():
            value = figures.get(name)
            text = "–" if value is None else f"{value:.1f}%"
            line += "  " + text.rjust(len(heading))
        lines.append(line.rstrip())
    return "\n".join(lines)


def _counts(result):
    """What was measured, in one line."""
    parts = []
    if "images" in result:
        parts.append(f"{result['images']} pictures")
    if "texts" in result:
        parts.append(f"{result['texts']} captions")
    if "train_images" in result:
        parts.append(f"{result['train_images']} training pictures")
    if "classes" in result:
        parts.append(f"{result['classes']} classes")
    if result["task"] == "cxc":
        parts += [
            f"{count} queries {task.replace('_', ' ')}"
            for task, count in result["queries"].items()
        ]
    notes = []
    if result.get("images_without_text") is not None:
        notes.append(
            f"{result['images_without_text']} pictures without a caption"
        )
    if result.get("classes_without_pictures"):
        notes.append(
            f"{result['classes_without_pictures']} classes without a picture"
        )
    if result.get("pictures_skipped") is not None:
        notes.append(f"{result['pictures_skipped']} left out as not readable")
    line = f"{result['task']}, {result['dataset']}: " + ", ".join(parts)
    return line + (f" ({', '.join(notes)})" if notes else "")


def _number(value, form):
    width = int(form.partition(".")[0] or 0)
    if value is None or math.isnan(value):
        return "–".rjust(width) if value is not None else " " * width
    return format(value, form)


def _interval(result, name):
    low, high = result["intervals"].get(name) or (None, None)
    if low is None or math.isnan(low):
        return ""
    return f"{100 * low:.1f} – {100 * high:.1f}%"


def describe_comparison(comparison):
    """Put the answer of `compare_results` into lines for the terminal."""
    lines = [
        f"{comparison['task']} on {comparison['dataset']}: "
        f"A = {comparison['first']}, B = {comparison['second']}",
        f"{'':26}{'A':>9}{'B':>9}{'B - A':>9}{'95% interval':>20}{'p':>8}",
    ]
    for row in comparison["figures"]:
        scale = 1 if row["name"].endswith(_RANKS) else 100
        values = [
            scale * row[name]
            for name in ("first", "second", "difference", "low", "high")
        ]
        verdict = "no difference shown"
        if row["differs"]:
            lower_is_better = row["name"].endswith(_RANKS)
            better = (row["difference"] > 0) != lower_is_better
            verdict = f"{'B' if better else 'A'} is better"
        lines.append(
            f"{row['name'].replace('_', ' '):26}"
            f"{values[0]:9.2f}{values[1]:9.2f}{values[2]:+9.2f}"
            f"{f'{values[3]:+.2f} to {values[4]:+.2f}':>20}"
            f"{row['p']:8.3f}  {verdict}"
        )
    lines.append(
        f"Paired bootstrap of {comparison['samples']} draws; p adjusted for "
        f"{len(comparison['figures'])} figures (Holm)."
    )
    if comparison["samples"] < comparison["samples_needed"]:
        lines.append(
            f"With fewer than {comparison['samples_needed']} draws no "
            "difference can be shown, however large: raise `--bootstrap`."
        )
    return "\n".join(lines)


# === Markdown ===


def write_report(results, directory, skipped=None):
    """Write `report.md` with one table for each data set, and plots.

    The models stand side by side, and the paper's figures beside them. Plots
    need matplotlib; without it the report says so.

    Args:
        results: list of `Result`.
        directory: string or `pathlib.Path`.
        skipped: dictionary from the name of an evaluation to the reason why
            it did not run. Defaults to `None`.

    Returns:
        `pathlib.Path` of the report.
    """
    directory = Path(directory)
    groups = {}
    for result in results:
        key = (result["task"], result["dataset"])
        groups.setdefault(key, []).append(result)
    plt = pyplot()
    lines = ["# Evaluation", ""]
    models = dict.fromkeys(result["model"] for result in results)
    lines += [f"Models: {', '.join(f'`{name}`' for name in models)}.", ""]
    lines += [
        "Brackets hold 95% bootstrap intervals. The paper is Jia et al., 2021, "
        "https://arxiv.org/abs/2102.05918.",
        "",
    ]
    if plt is None:
        lines += [
            'There are no plots, for they need matplotlib: pip install "'
            'align-keras[evaluation]".',
            "",
        ]
    for (task, dataset), group in groups.items():
        lines += [f"## {task}: {dataset}", ""]
        lines += [_counts(result) for result in group[:1]] + [""]
        lines += _table(group) + [""]
        if plt is not None:
            name = f"{task}-{dataset}".replace("/", "-") + ".png"
            _plot(plt, group, directory / "plots" / name)
            lines += [f"![{task} on {dataset}](plots/{name})", ""]
    if skipped:
        lines += ["## Not run", ""]
        lines += [f"- {name}: {reason}" for name, reason in skipped.items()]
        lines.append("")
    path = directory / "report.md"
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines), "utf-8")
    return path


def _table(group):
    paper = paper_rows_of(group[0]["task"], group[0]["dataset"])
    headings = [f"`{result['model']}`" for result in group]
    headings += [f"paper: {name}" for name in paper]
    names = list(dict.fromkeys(n for r in group for n in r["intervals"]))
    chance = any(f"chance_{name}" in group[0] for name in names)
    headings += ["chance"] * chance
    lines = [
        "| | " + " | ".join(headings) + " |",
        "|---|" + "---:|" * len(headings),
    ]
    for name in names:
        cells = [_cell(result, name) for result in group]
        cells += [
            f"{figures[name]:.1f}" if name in figures else ""
            for figures in paper.values()
        ]
        if chance:
            value = group[0].get(f"chance_{name}")
            cells.append("" if value is None else f"{100 * value:.2f}")
        lines.append(
            f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |"
        )
    return lines


def _cell(result, name):
    value = result.get(name)
    if value is None or math.isnan(value):
        return "–"
    scale = 1 if name.endswith(_RANKS) else 100
    text = f"{scale * value:.1f}"
    deviation = result.get("deviations", {}).get(name)
    if deviation is not None:
        text += f" ± {scale * deviation:.1f}"
    low, high = result["intervals"].get(name) or (None, None)
    if low is None or math.isnan(low):
        return text
    return f"{text} [{scale * low:.1f}, {scale * high:.1f}]"


def pyplot():
    """Return `matplotlib.pyplot` without a display; `None` where it lacks."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _plot(plt, group, path):
    """Draw each figure with its interval, and the paper's as a diamond."""
    names = [
        name
        for name in group[0]["intervals"]
        if not name.endswith(_RANKS) and group[0][name] is not None
    ]
    paper = paper_rows_of(group[0]["task"], group[0]["dataset"])
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.42 * len(names)))
    step = 0.8 / len(group)
    for number, result in enumerate(group):
        places, values, errors = [], [], [[], []]
        for place, name in enumerate(names):
            value = result.get(name)
            if value is None or math.isnan(value):
                continue
            low, high = result["intervals"].get(name) or (None, None)
            if low is None or math.isnan(low):
                low = high = value
            places.append(place + (number - (len(group) - 1) / 2) * step)
            values.append(100 * value)
            errors[0].append(max(0, 100 * (value - low)))
            errors[1].append(max(0, 100 * (high - value)))
        axes.barh(
            places, values, 0.9 * step, xerr=errors, label=result["model"]
        )
    for heading, figures in paper.items():
        places = [n for n, name in enumerate(names) if name in figures]
        values = [figures[names[place]] for place in places]
        axes.plot(values, places, "D", label=f"paper: {heading}")
    axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axes.invert_yaxis()
    axes.set_xlabel("%")
    axes.legend(fontsize=7)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
