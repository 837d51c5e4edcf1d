"""Write plans to files, for `align-keras plan`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_keras.io.json_files import write_json
from align_keras.io.mirrors import locked
from align_keras.io.optional import require
from align_keras.io.progress import progress_steps
from align_keras.planning.compare_chips import compare_chips
from align_keras.planning.describe_plans import describe_batches
from align_keras.planning.describe_plans import describe_chips
from align_keras.planning.describe_plans import describe_plan
from align_keras.planning.largest_batch import find_largest_batch
from align_keras.planning.plan import add_price
from align_keras.planning.plan import check_price
from align_keras.planning.plan_store import PlanStore
from align_keras.planning.plots import plot_batches
from align_keras.planning.plots import plot_chips


@locked("output")
def write_plan(
    model: str,
    output: str | Path,
    price: float | None = None,
    **options: Any,
) -> tuple[dict, str]:
    """Plan a run and write `plan.json`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. Directory to write to, in which
            finished plans for a topology are kept as well, see `PlanStore`.
        price: float. Price of a core for an hour. Defaults to `None`: no price
            is added.
        **options: Arguments of `plan`.

    Returns:
        A pair of the plan, a dict, and its description, a string.
    """
    check_price(price)
    with progress_steps() as step:
        step(f"Compiling {model}; large models take minutes")
        found = _store(output).plan(model, **options)
    _add_price([found], price)
    write_json(Path(output) / "plan.json", found)
    return found, describe_plan(found)


@locked("output")
def write_search(
    model: str,
    output: str | Path,
    price: float | None = None,
    microbatch: int | None = None,
    **options: Any,
) -> tuple[list[dict], str]:
    """Search for the largest batch; write `search.json` and `search.png`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. See `write_plan`.
        price: float. Price of a core for an hour. Defaults to `None`.
        microbatch: int. Size of microbatches to try. Defaults to `None`: 16.
        **options: Arguments of `find_largest_batch`.

    Returns:
        A pair of the results, a list of dicts, and their description, a
        string.
    """
    check_price(price)
    require("matplotlib", extra="plan")
    with progress_steps() as step:
        step(f"Searching for {model}")
        found = find_largest_batch(
            model,
            microbatches=(None, 16 if microbatch is None else microbatch),
            store=_store(output),
            **options,
        )
    _add_price([row["plan"] for row in found], price)
    write_json(Path(output) / "search.json", found)
    plot_batches(found, Path(output) / "search.png")
    return found, describe_batches(found)


@locked("output")
def write_comparison(
    model: str,
    output: str | Path,
    topologies: Sequence[str],
    price: float | None = None,
    **options: Any,
) -> tuple[list[dict], str]:
    """Compare chips; write `compare.json` and `compare.png`.

    Args:
        model: string. See `plan`.
        output: string or `pathlib.Path`. See `write_plan`.
        topologies: list of strings. See `compare_chips`.
        price: float. Price of a core for an hour. Defaults to `None`.
        **options: Arguments of `compare_chips`.

    Returns:
        A pair of the results, a list of dicts, and their description, a
        string.
    """
    check_price(price)
    require("matplotlib", extra="plan")
    with progress_steps() as step:
        step(f"Comparing chips for {model}")
        found = compare_chips(
            model,
            topologies=topologies,
            store=_store(output),
            **options,
        )
    _add_price([row.get("plan") for row in found], price)
    write_json(Path(output) / "compare.json", found)
    plot_chips(found, Path(output) / "compare.png")
    return found, describe_chips(found)


def _store(output):
    return PlanStore(Path(output) / "compiled")


def _add_price(plans, price):
    for plan in plans:
        if plan is not None and price is not None:
            add_price(plan, price)
