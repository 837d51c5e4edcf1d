"""Search for the largest batch that fits."""

import dataclasses
import itertools
import logging
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan_store import PlanStore
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe

logger = logging.getLogger("align_keras")

# Batches are multiples of this: TPUs work on rows of 8, and the ghost
# normalisation on runs of 16.
UNIT = 8
GHOST_UNIT = 16


def find_largest_batch(
    model: str | Callable,
    recipe: str | Recipe = "align",
    topology: str | None = None,
    microbatches: Sequence[int | None] = (None, 16),
    limit: int = 1024,
    vocabulary_size: int | None = None,
    shard_state: bool = False,
    store: PlanStore | None = None,
    **overrides: Any,
) -> list[dict]:
    """Find the largest batch per core that fits, by bisection.

    Args:
        model: string or callable. See `plan`.
        recipe: string or `Recipe`.
        topology: string. See `plan`.
        microbatches: sequence of ints. Sizes of microbatches to try, each
            with and without rematerialisation; `None` is the whole batch.
            Defaults to `(None, 16)`. What the recipe says of either is not
            used.
        limit: int. The largest batch to try. Defaults to `1024`.
        vocabulary_size, shard_state: See `plan`.
        store: `PlanStore`. Where plans are kept. Defaults to `None`: they are
            not kept.
        **overrides: Fields of the recipe to replace, except `remat` and
            `microbatch_size`, which are tried.

    Returns:
        A list of dicts, one for each combination, with `"remat"`;
        `"microbatch_size"`; `"batch_per_core"` (`None` if no batch fits, or if
        none was tried because a microbatch is larger than `limit`);
        `"at_limit"`, whether every batch that was tried fits, so that a larger
        one might, too; `"plan"`, the plan of that batch; and `"tried"`, a list
        of pairs of a batch and the bytes it takes, or `None` if it does not
        fit.
    """
    if limit < 1:
        raise ValueError(
            f"`limit` must be at least 1 pair. Received: limit={limit}"
        )
    # Before the first of them is tried, which takes minutes.
    for microbatch in microbatches:
        if microbatch is not None and microbatch < 1:
            raise ValueError(
                "`microbatches` must be sizes of at least 1 pair, or None. "
                f"Received: microbatches={microbatches}"
            )
    searched = {"remat", "microbatch_size"}.intersection(overrides)
    if searched:
        name = min(searched)
        raise ValueError(
            "The search tries all `microbatches`, each with and without "
            "`remat`: leave the fields `remat` and `microbatch_size` out. "
            f"Received: {name}={overrides[name]!r}"
        )
    store = store or PlanStore()
    # Microbatches divide the batches that are tried, and not the recipe's.
    base = dataclasses.replace(
        load_recipe(recipe, **overrides), microbatch_size=None
    )
    results = []
    for microbatch, remat in itertools.product(microbatches, (False, True)):
        way = dataclasses.replace(base, remat=remat)
        plans: dict[int, dict | None] = {}

        def fits(batch, plans=plans, way=way, microbatch=microbatch):
            try:
                plans[batch] = store.plan(
                    model,
                    way,
                    topology,
                    batch,
                    vocabulary_size,
                    shard_state,
                    microbatch,
                )
            except DoesNotFit:
                plans[batch] = None
            verdict = "fits" if plans[batch] else "does not fit"
            name = _name(microbatch, way.remat)
            logger.info("%s: %d per core %s", name, batch, verdict)
            return plans[batch] is not None

        ghost = way.batch_norm == "ghost"
        unit = microbatch or (GHOST_UNIT if ghost else UNIT)
        best = largest(fits, unit, limit, divisible=microbatch is None)
        results.append(
            {
                "remat": remat,
                "microbatch_size": microbatch,
                "batch_per_core": best,
                "at_limit": all(plans.values()) and best is not None,
                "plan": None if best is None else plans[best],
                "tried": [
                    (batch, found and found["memory"]["total"])
                    for batch, found in sorted(plans.items())
                ],
            }
        )
    return results


def largest(
    fits: Callable[[int], bool], unit: int, limit: int, divisible: bool = True
) -> int | None:
    """Find the largest number that fits.

    Args:
        fits: callable. Tells whether a number fits. If a number fits, all
            smaller ones must fit, too.
        unit: int. The result is a multiple of it.
        limit: int. The largest number to try.
        divisible: bool. Whether to try halves of the unit if the unit itself
            does not fit. Defaults to `True`.

    Returns:
        An int, or `None` if no number fits.
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


def _name(microbatch, remat):
    words = "whole batch"
    if microbatch is not None:
        words = f"microbatches of {microbatch}"
    return words + (", remat" if remat else "")
