"""Plot plans."""

from pathlib import Path

from align_keras.io.plots import pyplot
from align_keras.io.plots import save_plot
from align_keras.planning.describe_plans import GIB
from align_keras.planning.describe_plans import MEMORY
from align_keras.planning.describe_plans import common_time


def plot_batches(results: list[dict], path: str | Path) -> None:
    """Plot the memory of each batch that was tried.

    Args:
        results: list of dicts. The result of `find_largest_batch`.
        path: string or `pathlib.Path`. The PNG to write.
    """
    plt = pyplot(extra="plan")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    capacity = None
    for row in results:
        fitting = [(batch, size) for batch, size in row["tried"] if size]
        if not fitting:
            continue
        capacity = row["plan"]["memory"]["capacity"]
        batches, sizes = zip(*fitting, strict=True)
        label = "remat" if row["remat"] else "no remat"
        if row["microbatch_size"]:
            label += f", microbatches of {row['microbatch_size']}"
        least = ">= " if row["at_limit"] else ""
        axes.plot(
            batches,
            [size / GIB for size in sizes],
            marker="o",
            linestyle="--" if row["remat"] else "-",
            label=f"{label}: {least}{row['batch_per_core']}",
        )
    if capacity is not None:
        axes.axhline(capacity / GIB, color="black", linewidth=1)
        axes.legend(title="largest batch that fits", fontsize="small")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("pairs per core")
    axes.set_ylabel("GiB per core")
    axes.set_ylim(bottom=0)
    save_plot(plt, figure, path, dpi=150)


def plot_chips(results: list[dict], path: str | Path) -> None:
    """Plot the memory and the time of each topology side by side.

    Args:
        results: list of dicts. The result of `compare_chips`.
        path: string or `pathlib.Path`. The PNG to write.
    """
    plt = pyplot(extra="plan")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4.5), layout="constrained"
    )
    names = [row["topology"] for row in results]
    plans = [row.get("plan") for row in results]
    bottom = [0.0] * len(names)
    for kind, words in MEMORY.items():
        heights = [_share(found, kind) for found in plans]
        left.bar(names, heights, bottom=bottom, label=words)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for place, found in enumerate(plans):
        if found is None:
            left.annotate("no plan", (place, 0.02), rotation=90, ha="center")
    left.axhline(1, color="black", linewidth=1)
    left.set_ylim(0, 1.45)
    left.set_ylabel("share of a core's memory")
    left.legend(fontsize="small", ncols=2, loc="upper center")
    measure = common_time(results)
    right.bar(names, [p["seconds"][measure] if p else 0.0 for p in plans])
    by = ", by the roofline" if measure == "roofline" else ""
    right.set_ylabel(f"seconds per step{by}")
    figure.suptitle(f"{results[0]['batch_size']:,} pairs in all")
    save_plot(plt, figure, path, dpi=150)


def _share(plan, kind):
    if plan is None:
        return 0.0
    return plan["memory"][kind] / plan["memory"]["capacity"]
