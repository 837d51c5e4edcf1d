"""Plans as files: what `align-keras plan` does."""

import json
from pathlib import Path

from rich.console import Console

from align_keras.io.atomic import atomic_file
from align_keras.planning import plots
from align_keras.planning import report
from align_keras.planning.chips import parse_topology
from align_keras.planning.plan import add_price
from align_keras.planning.plan import check_price
from align_keras.planning.search import compare
from align_keras.planning.search import search
from align_keras.planning.store import PlanStore


def write_plan(model, output, price=None, **options):
    """Plan a run and write `plan.json`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. Directory to write, which also
            keeps what was compiled.
        price: float. Price of a core for an hour. Defaults to `None`.
        **options: Arguments of `plan`.

    Returns:
        A pair of the plan, a dict, and its description, a string.
    """
    check_price(price)
    with _status(f"Compiling {model}; large models take minutes"):
        found = _store(output).plan(model, **options)
    _add_price([found], price)
    _write(output, "plan.json", found)
    return found, report.describe_plan(found)


def write_search(model, output, price=None, microbatch=None, **options):
    """Search the largest batch; write `search.json` and `search.png`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. See `write_plan`.
        price: float. Price of a core for an hour. Defaults to `None`.
        microbatch: int. Size of microbatches to try. Defaults to `None`: 16.
        **options: Arguments of `search`.

    Returns:
        A pair of a list of dicts and a string.
    """
    check_price(price)
    plots.require_matplotlib()
    with _status(f"Searching for {model}") as status:
        found = search(
            model,
            microbatches=(None, 16 if microbatch is None else microbatch),
            store=_store(output),
            say=status.console.print,
            **options,
        )
    _add_price([row["plan"] for row in found], price)
    _write(output, "search.json", found)
    plots.plot_search(found, Path(output) / "search.png")
    return found, report.describe_search(found)


def write_comparison(model, output, topologies, price=None, **options):
    """Compare chips; write `compare.json` and `compare.png`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. See `write_plan`.
        topologies: list of strings. See `compare`.
        price: float. Price of a core for an hour. Defaults to `None`.
        **options: Arguments of `compare`.

    Returns:
        A pair of a list of dicts and a string.
    """
    check_price(price)
    plots.require_matplotlib()
    for topology in topologies:
        parse_topology(topology)
    with _status(f"Comparing chips for {model}") as status:
        found = compare(
            model,
            topologies=topologies,
            store=_store(output),
            say=status.console.print,
            **options,
        )
    _add_price([row.get("plan") for row in found], price)
    _write(output, "compare.json", found)
    plots.plot_comparison(found, Path(output) / "compare.png")
    return found, report.describe_comparison(found)


def _store(output):
    return PlanStore(Path(output) / "compiled")


def _status(words):
    return Console(stderr=True).status(words)


def _add_price(plans, price):
    for plan in plans:
        if plan is not None and price is not None:
            add_price(plan, price)


def _write(output, name, found):
    with atomic_file(Path(output) / name) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
