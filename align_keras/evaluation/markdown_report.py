"""Write results side by side into one Markdown file, with plots."""

import importlib.util
import math
from pathlib import Path
from urllib.parse import quote

from align_keras.evaluation.describe_results import RANKS
from align_keras.evaluation.describe_results import describe_counts
from align_keras.evaluation.describe_results import language_metrics
from align_keras.evaluation.describe_results import tasks_left_out
from align_keras.evaluation.paper import paper_rows_of
from align_keras.evaluation.results import Result
from align_keras.io.atomic import atomic_file
from align_keras.io.plots import pyplot
from align_keras.io.plots import save_plot


def write_markdown_report(
    results: list[Result],
    directory: str | Path,
    skipped: dict[str, str] | None = None,
) -> Path:
    """Write `report.md` with a table and a plot for each data set.

    Each table has a column for each model, followed by the paper's values.
    Plots need matplotlib; without it, the report notes that they are missing.

    Args:
        results: list of `Result`.
        directory: string or `pathlib.Path`. The directory to write.
        skipped: dictionary from the name of an evaluation to the reason why
            it did not run. Defaults to `None`.

    Returns:
        `pathlib.Path` of the report.
    """
    directory = Path(directory)
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        key = (result["task"], result["dataset"])
        groups.setdefault(key, []).append(result)
    drawn = importlib.util.find_spec("matplotlib") is not None
    lines = ["# Evaluation", ""]
    models = dict.fromkeys(result["model"] for result in results)
    lines += [f"Models: {', '.join(f'`{name}`' for name in models)}.", ""]
    lines += [
        "Brackets hold 95% bootstrap intervals. The paper is Jia et al., 2021, "
        "https://arxiv.org/abs/2102.05918.",
        "",
    ]
    if not drawn:
        lines += [
            "There are no plots, because they need matplotlib: pip install "
            '"align-keras[evaluation]".',
            "",
        ]
    for (task, dataset), group in groups.items():
        lines += [f"## {task}: {dataset}", ""]
        lines += [describe_counts(result) for result in group[:1]] + [""]
        lines += _table(group) + [""]
        for result in group:
            lines += _table_of_languages(result)
            lines += _list_of_tasks(result)
        if drawn:
            name = f"{task}-{dataset}".replace("/", "-") + ".png"
            _plot(group, directory / "plots" / name)
            lines += [f"![{task} on {dataset}](plots/{quote(name)})", ""]
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
    rows = {}
    for name in names:
        cells = [metric_cell(result, name) for result in group]
        cells += [
            f"{metrics[name]:.1f}" if name in metrics else ""
            for metrics in paper.values()
        ]
        if chance:
            value = group[0].get(f"chance_{name}")
            cells.append("" if value is None else f"{100 * value:.2f}")
        rows[name.replace("_", " ")] = cells
    return markdown_table(headings, rows)


def _table_of_languages(result):
    """Return a table with a row for each language, if there are several."""
    languages = result.get("by_language")
    if not languages:
        return []
    names = language_metrics(result)
    rows = {
        language: [
            str(row["texts"]),
            *(metric_cell(row, name) for name in names.values()),
        ]
        for language, row in languages.items()
    }
    title = f"`{result['model']}` in each language, from images to text and "
    title += "from texts to images:"
    return [title, "", *markdown_table(["captions", *names], rows), ""]


def _list_of_tasks(result):
    """Return a line for each task that was not measured."""
    missing = tasks_left_out(result)
    if not missing:
        return []
    lines = [f"- {name}: {reason}" for name, reason in missing.items()]
    return [f"`{result['model']}` was not measured on:", "", *lines, ""]


def markdown_table(
    headings: list[str], rows: dict[str, list[str]]
) -> list[str]:
    """Return the lines of a table whose rows start with their names."""
    return [
        "| | " + " | ".join(headings) + " |",
        "|---|" + "---:|" * len(headings),
        *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items()),
    ]


def metric_cell(result: Result, name: str) -> str:
    """Format a metric in percent, with its deviation and interval."""
    value = result.get(name)
    if value is None or math.isnan(value):
        return "–"
    scale = 1 if name.endswith(RANKS) else 100
    text = f"{scale * value:.1f}"
    deviation = result.get("deviations", {}).get(name)
    if deviation is not None:
        text += f" ± {scale * deviation:.1f}"
    ends = result["intervals"].get(name)
    if not ends or ends[0] is None or math.isnan(ends[0]):
        return text
    return f"{text} [{scale * ends[0]:.1f}, {scale * ends[1]:.1f}]"


def _plot(group, path):
    """Draw bars with intervals, and the paper's metrics as diamonds."""
    names = [
        name
        for name in group[0]["intervals"]
        if not name.endswith(RANKS) and group[0][name] is not None
    ]
    paper = paper_rows_of(group[0]["task"], group[0]["dataset"])
    plt = pyplot(extra="evaluation")
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
    for heading, metrics in paper.items():
        places = [n for n, name in enumerate(names) if name in metrics]
        values = [metrics[names[place]] for place in places]
        axes.plot(values, places, "D", label=f"paper: {heading}")
    axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axes.invert_yaxis()
    axes.set_xlabel("%")
    axes.legend(fontsize=7)
    figure.tight_layout()
    save_plot(plt, figure, path)
