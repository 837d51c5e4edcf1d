"""Compare several kinds of chip on the same global batch."""

import logging
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from align_keras.io.lists import check_list
from align_keras.planning.chips import CHIPS
from align_keras.planning.chips import parse_topology
from align_keras.planning.chips import slice_of
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import DoesNotDivide
from align_keras.planning.plan_store import PlanStore
from align_keras.planning.topology import topology_devices
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe

logger = logging.getLogger("align_keras")


def compare_chips(
    model: str | Callable,
    recipe: str | Recipe = "align",
    topologies: Sequence[str] = (),
    topology: str | None = None,
    batch_per_core: int | None = None,
    vocabulary_size: int | None = None,
    shard_state: bool = False,
    microbatch_size: int | None = None,
    store: PlanStore | None = None,
    **overrides: Any,
) -> list[dict]:
    """Plan the same global batch on several kinds of chip.

    Args:
        model: string or callable. See `plan`.
        recipe: string or `Recipe`. Its batch is the global batch, unless
            `topology` and `batch_per_core` define another.
        topologies: sequence of strings. Topologies to compare. Defaults to
            `topology` and, for every other kind of chip, the usual slice with
            as many chips. A kind that has none gets an `"error"`.
        topology: string. Sets the number of chips, see `topologies`. Defaults
            to `None`, which means 4 chips of every kind.
        batch_per_core: int. Number of pairs on each core of `topology`.
            Defaults to `None`: the global batch is that of the recipe.
        vocabulary_size, shard_state, microbatch_size: See `plan`.
        store: `PlanStore`. Where plans are kept. Defaults to `None`: they are
            not kept.
        **overrides: Fields of the recipe to replace.

    Returns:
        A list of dicts, one for each topology, with `"topology"` (the name of
        the chip if it has no such slice), `"cores"`, `"batch_size"`, and either
        `"plan"` or `"error"`, the reason why there is no plan.

    Raises:
        ValueError: A topology is unknown, or the arguments contradict one
            another.
    """
    check_list(topologies, "topologies")
    if topologies and topology is not None and batch_per_core is None:
        raise ValueError(
            "With topologies to compare, `topology` only says which cores "
            "`batch_per_core` is for: pass `batch_per_core` too, or leave out "
            f"`topology`. Received: topology={topology!r}"
        )
    store = store or PlanStore()
    settings = load_recipe(recipe, **overrides)
    batch = settings.batch_size
    if batch_per_core is not None:
        if topology is None:
            raise ValueError(
                "A batch per core needs a topology: give `--topology`, or the "
                "global batch as `--set batch_size=N`."
            )
        batch = batch_per_core * len(topology_devices(topology))
    rows = _rows(topologies) if topologies else _rows_of_all_kinds(topology)
    for row in rows:
        name, count = row["topology"], row["cores"]
        row["batch_size"] = batch
        try:
            if "error" not in row:
                if batch % count:
                    raise DoesNotDivide(
                        f"{count} cores cannot share a batch of {batch} evenly."
                    )
                row["plan"] = store.plan(
                    model,
                    settings,
                    name,
                    batch // count,
                    vocabulary_size,
                    shard_state,
                    microbatch_size,
                )
        except (DoesNotFit, DoesNotDivide) as error:
            row["error"] = str(error)
        logger.info("%s: %s", name, row.get("error", "planned"))
    return rows


def _rows(topologies):
    return [
        {"topology": name, "cores": len(topology_devices(name))}
        for name in dict.fromkeys(topologies)
    ]


def _rows_of_all_kinds(topology):
    """Begin a row for the topology, and one for every other kind of chip."""
    given, chips = parse_topology(topology) if topology else (None, 4)
    rows: list[dict[str, Any]] = []
    for chip in CHIPS.values():
        name = topology if chip is given else slice_of(chip.name, chips)
        if name is None:
            rows.append(
                {
                    "topology": chip.name,
                    "cores": chips * chip.devices,
                    "error": f"There is no usual slice of {chips} chips.",
                }
            )
        else:
            rows += _rows([name])
    return rows
