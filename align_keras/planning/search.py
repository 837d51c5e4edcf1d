"""The largest batch that fits, and how chips compare."""

import dataclasses
import itertools

from align_keras.planning.chips import CHIPS
from align_keras.planning.chips import parse_topology
from align_keras.planning.chips import slice_of
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import DoesNotDivide
from align_keras.planning.store import PlanStore
from align_keras.planning.topology import topology_devices
from align_keras.training.recipes import load_recipe

# Batches are multiples of this: TPUs work on rows of 8, and the ghost
# normalisation on runs of 16.
UNIT = 8
GHOST_UNIT = 16


def search(
    model,
    recipe="align",
    topology=None,
    microbatches=(None, 16),
    limit=1024,
    store=None,
    say=print,
    **options,
):
    """Find the largest batch per core that fits, by bisection.

    Args:
        model: string or callable. See `plan`.
        recipe: string or `Recipe`.
        topology: string. See `plan`.
        microbatches: sequence of ints. Sizes of microbatches to try, each
            with and without rematerialisation; `None` is a batch at once.
        limit: int. The largest batch to try. Defaults to `1024`.
        store: `PlanStore`. Keeps the plans. Defaults to `None`.
        say: callable. Takes a line of progress.
        **options: Other arguments of `plan`.

    Returns:
        A list of dicts, one for each way: `"remat"`, `"microbatch_size"`,
        `"batch_per_core"` (`None` if none fits), `"at_limit"`, whether all
        that was tried fits and more might, `"plan"` of that batch, and
        `"tried"`, a list of pairs of a batch and its bytes, or `None` where
        it did not fit.
    """
    if limit < 1:
        raise ValueError(
            f"`limit` must be at least 1 pair. Received: limit={limit}"
        )
    store = store or PlanStore()
    base, options = _split(recipe, options)
    # All of them first: what is wrong with one should not wait for hours.
    ways = [
        dataclasses.replace(base, microbatch_size=microbatch, remat=remat)
        for microbatch, remat in itertools.product(microbatches, (False, True))
    ]
    results = []
    for way in ways:
        microbatch, plans = way.microbatch_size, {}

        def fits(batch, plans=plans, way=way):
            try:
                plans[batch] = store.plan(
                    model, way, topology, batch, **options
                )
            except DoesNotFit:
                plans[batch] = None
            words = "fits" if plans[batch] else "does not fit"
            say(f"{_name(way)}: {batch} per core {words}")
            return plans[batch] is not None

        ghost = way.batch_norm == "ghost"
        unit = microbatch or (GHOST_UNIT if ghost else UNIT)
        best = largest(fits, unit, limit, divisible=microbatch is None)
        results.append(
            {
                "remat": way.remat,
                "microbatch_size": microbatch,
                "batch_per_core": best,
                "at_limit": all(plans.values()) and best is not None,
                "plan": plans.get(best),
                "tried": [
                    (batch, found and found["memory"]["total"])
                    for batch, found in sorted(plans.items())
                ],
            }
        )
    return results


def largest(fits, unit, limit, divisible=True):
    """Find the largest number that fits.

    Args:
        fits: callable. Takes a number; if one fits, so do all below.
        unit: int. The result is a multiple of it.
        limit: int. The largest number to try.
        divisible: bool. Whether halves of the unit are tried where it does
            not fit. Defaults to `True`.

    Returns:
        An int, or `None` if none fits.
    """
    low, high = 0, 1
    while high * unit <= limit and fits(high * unit):
        low, high = high, 2 * high
    if not low:
        while divisible and unit > 1:
            unit //= 2
            if unit <= limit and fits(unit):
                return unit
        return None
    high = min(high, limit // unit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * unit):
            low = middle
        else:
            high = middle
    return low * unit


def compare(
    model,
    recipe="align",
    topologies=(),
    topology=None,
    batch_per_core=None,
    store=None,
    say=print,
    **options,
):
    """Plan the same global batch on several kinds of chip.

    Args:
        model: string or callable. See `plan`.
        recipe: string or `Recipe`. Its batch is that of all, unless
            `topology` and `batch_per_core` say another.
        topologies: sequence of strings. Defaults to every kind of chip, each
            with as many chips as `topology` has, or its largest slice.
        topology: string. See `topologies`. Defaults to one machine, of 4
            chips.
        batch_per_core: int. Number of pairs on each core of `topology`.
        store: `PlanStore`. Keeps the plans. Defaults to `None`.
        say: callable. Takes a line of progress.
        **options: Other arguments of `plan`.

    Returns:
        A list of dicts, one for each topology: `"topology"`, and `"plan"` or
        `"error"`, why there is none.
    """
    store = store or PlanStore()
    recipe, options = _split(recipe, options)
    batch = recipe.batch_size
    if batch_per_core is not None:
        if topology is None:
            raise ValueError(
                "A batch per core is one of a topology: give `--topology`, or "
                "the batch of all as `--set batch_size=N`."
            )
        batch = batch_per_core * len(topology_devices(topology))
    chips = parse_topology(topology)[1] if topology else 4
    names = topologies or [slice_of(chip, chips) for chip in CHIPS]
    cores = {name: len(topology_devices(name)) for name in names}
    results = []
    for name, count in cores.items():
        row = {"topology": name, "cores": count, "batch_size": batch}
        try:
            if batch % count:
                raise DoesNotDivide(
                    f"{count} cores cannot share a batch of {batch} evenly."
                )
            row["plan"] = store.plan(
                model, recipe, name, batch // count, **options
            )
        except (DoesNotFit, DoesNotDivide) as error:
            row["error"] = str(error)
        say(f"{name}: {row.get('error', 'planned')}")
        results.append(row)
    return results


def _name(recipe):
    words = "whole batch"
    if recipe.microbatch_size:
        words = f"microbatches of {recipe.microbatch_size}"
    return words + (", remat" if recipe.remat else "")


def _split(recipe, options):
    """Put the fields among the arguments of `plan` into the recipe.

    Returns:
        A pair of a `Recipe` and a dict of the other arguments.
    """
    names = ("vocabulary_size", "shard_optimizer")
    others = {k: v for k, v in options.items() if k in names}
    fields = {k: v for k, v in options.items() if k not in names}
    return load_recipe(recipe, **fields), others
