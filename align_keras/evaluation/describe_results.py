"""Format results and comparisons as text for the terminal."""

import math

from align_keras.evaluation.paper import paper_rows_of
from align_keras.evaluation.results import Result

# Metrics that are neither shares nor correlations.
RANKS = "_median_rank"


def describe_result(result: Result) -> str:
    """Format a result for the terminal.

    Args:
        result: `Result`.

    Returns:
        A string: what was measured, and for each metric the model's value,
        chance if it is known, the 95% interval, and the paper's values.
    """
    paper = paper_rows_of(result["task"], result["dataset"])
    lines = [describe_counts(result)]
    deviations = result.get("deviations", {})
    header = f"{'':26}{'model':>8}"
    header += f"{'± std':>8}" * bool(deviations)
    header += f"{'chance':>9}{'95% interval':>18}"
    lines.append(header + "".join(f"  {name}" for name in paper))
    for name in result.get("intervals", {}):
        line = f"{name.replace('_', ' '):26}"
        if name.endswith(RANKS):
            low, high = result["intervals"][name]
            line += f"{_number(result[name], '8.1f')}{'':9}"
            line += f"{_number(low, '.1f')} – {_number(high, '.1f')}".rjust(18)
        else:
            line += _number(result[name], "8.1%")
            if deviations:
                line += _number(deviations.get(name), "8.1%")
            line += _number(result.get(f"chance_{name}"), "9.2%")
            line += _interval(result, name).rjust(18)
        for heading, metrics in paper.items():
            value = metrics.get(name)
            text = "–" if value is None else f"{value:.1f}%"
            line += "  " + text.rjust(len(heading))
        lines.append(line.rstrip())
    lines += _describe_languages(result)
    if missing := tasks_left_out(result):
        lines += ["", "Not measured:"]
        lines += [f"{name}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines)


def tasks_left_out(result: Result) -> dict[str, str]:
    """Return the tasks that were not measured, each with the reason."""
    return {
        **result.get("tasks_missing", {}),
        **{
            name: f"failed: {reason}"
            for name, reason in result.get("tasks_failed", {}).items()
        },
    }


def _describe_languages(result):
    """Return a line for each language, if a result has several."""
    languages = result.get("by_language")
    if not languages:
        return []
    names = language_metrics(result)
    width = max(map(len, ("language", *languages)))
    header = f"{'language':{width}}{'captions':>10}"
    header += "".join(title.rjust(13) for title in names)
    lines = ["", f"{header}{'95% interval':>18}"]
    for language, row in languages.items():
        line = f"{language:{width}}{row['texts']:10}"
        line += "".join(_number(row[name], "13.1%") for name in names.values())
        lines.append(line + _interval(row, "mean_recall").rjust(18))
    return lines


def language_metrics(result: Result) -> dict[str, str]:
    """Return the metrics that a table of languages shows.

    Args:
        result: `Result` with `"by_language"`.

    Returns:
        A dictionary from short titles, such as `"text @5"`, to the names of
        the recalls and of their mean.
    """
    return {
        **{f"text @{k}": f"image_to_text_recall@{k}" for k in result["ks"]},
        **{f"image @{k}": f"text_to_image_recall@{k}" for k in result["ks"]},
        "mean recall": "mean_recall",
    }


def describe_counts(result: Result) -> str:
    """Say in one line what was measured."""
    parts = []
    if "images" in result:
        parts.append(f"{result['images']} images")
    if "texts" in result:
        parts.append(f"{result['texts']} captions")
    if "train_images" in result:
        parts.append(f"{result['train_images']} training images")
    if "examples" in result:
        parts.append(f"{result['examples']} examples")
    if "classes" in result:
        parts.append(f"{result['classes']} classes")
    if left := len(tasks_left_out(result)):
        done = len(result["tasks"])
        parts.append(f"{done} of {done + left} tasks")
    if result["task"] == "cxc":
        parts += [
            f"{count} queries {task.replace('_', ' ')}"
            for task, count in result["queries"].items()
        ]
    if "by_language" in result:
        parts.append(f"{len(result['by_language'])} languages")
    notes = []
    for language, row in result.get("by_language", {}).items():
        if row["images_without_text"]:
            notes.append(
                f"{row['images_without_text']} images without a caption in "
                f"{language}"
            )
    if result.get("images_without_text") is not None:
        notes.append(
            f"{result['images_without_text']} images without a caption"
        )
    if result.get("classes_without_images"):
        notes.append(
            f"{result['classes_without_images']} classes without an image"
        )
    if result.get("examples_skipped"):
        notes.append(f"{result['examples_skipped']} examples left out")
    if result.get("images_skipped") is not None:
        notes.append(f"{result['images_skipped']} left out as not readable")
    line = f"{result['task']}, {result['dataset']}"
    line += f": {', '.join(parts)}" if parts else ""
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


def describe_comparison(comparison: dict) -> str:
    """Format what `compare_results` returns for the terminal."""
    lines = [
        f"{comparison['task']} on {comparison['dataset']}: "
        f"A = {comparison['first']}, B = {comparison['second']}",
        f"{'':26}{'A':>9}{'B':>9}{'B - A':>9}{'95% interval':>20}{'p':>8}",
    ]
    for row in comparison["metrics"]:
        scale = 1 if row["name"].endswith(RANKS) else 100
        values = [
            scale * row[name]
            for name in ("first", "second", "difference", "low", "high")
        ]
        verdict = "no difference shown"
        if row["differs"]:
            lower_is_better = row["name"].endswith(RANKS)
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
        f"{len(comparison['metrics'])} metrics (Holm)."
    )
    if comparison["samples"] < comparison["samples_needed"]:
        lines.append(
            f"With fewer than {comparison['samples_needed']} draws no "
            "difference can be shown, however large: raise `--bootstrap`."
        )
    return "\n".join(lines)
