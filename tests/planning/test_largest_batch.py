"""Bisection against trying everything, and what the compiler says."""

import pytest

pytest.importorskip("jax")

from align_keras.planning.compile import DoesNotFit
from align_keras.planning.compile import read_shortage
from align_keras.planning.describe_plans import GIB
from align_keras.planning.describe_plans import describe_batches
from align_keras.planning.largest_batch import find_largest_batch
from align_keras.planning.largest_batch import largest
from align_keras.planning.plots import plot_batches
from align_keras.training import load_recipe


class LinearStore:
    """Plans of a model whose memory is 4 GiB, and some for each pair."""

    capacity = 16 * GIB

    def plan(
        self, model, recipe, topology, batch, tokens, split, microbatch_size
    ):
        assert recipe.microbatch_size is None
        pairs = microbatch_size or batch
        share = pairs * GIB // (12 if recipe.remat else 3)
        total = 4 * GIB + share + batch * 2**16
        if total > self.capacity:
            raise DoesNotFit.by(total, self.capacity)
        return {
            "batch_per_core": batch,
            "memory": {"total": total, "capacity": self.capacity},
            "seconds": {"step": 0.01 * batch},
        }


def test_search_over_remat_and_microbatches(tmp_path, caplog):
    """Of 12 GiB, a pair takes a third or a twelfth.

    What the recipe says of either is not what is searched.
    """
    caplog.set_level("INFO")
    rows = find_largest_batch(
        "align_b0_bert_tiny",
        load_recipe("align", microbatch_size=8, remat=True),
        microbatches=(None, 16, 64),
        limit=256,
        store=LinearStore(),
    )
    ways = [
        (
            row["microbatch_size"],
            row["remat"],
            row["batch_per_core"],
            row["at_limit"],
        )
        for row in rows
    ]
    # 35.99 and 143.9 pairs fit, in multiples of 8; of microbatches any number
    # does, or none.
    assert ways == [
        (None, False, 32, False),
        (None, True, 136, False),
        (16, False, 256, True),
        (16, True, 256, True),
        (64, False, None, False),
        (64, True, 256, True),
    ]
    for row in rows:
        sizes = dict(row["tried"])
        if row["plan"]:
            total = row["plan"]["memory"]["total"]
            assert sizes[row["batch_per_core"]] == total
    said = [line for line in caplog.messages if " per core " in line]
    assert len(said) == sum(len(row["tried"]) for row in rows)
    table = describe_batches(rows).splitlines()
    assert len(table) == 7
    assert " 136 " in table[2] and "100.0" in table[2]
    assert ">= 256, the limit " in table[3] and "limit" not in table[2]
    assert table[5].endswith("none fits")
    pytest.importorskip("matplotlib")
    plot_batches(rows, tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_microbatches_divide_the_batch_that_is_tried():
    """And not that of the recipe, which is 16,384."""
    rows = find_largest_batch(
        "any", microbatches=(24,), limit=100, store=LinearStore()
    )
    found = [(row["remat"], row["batch_per_core"]) for row in rows]
    assert found == [(False, 96), (True, 96)]


def test_no_batch_is_tried_below_one_microbatch():
    rows = find_largest_batch(
        "any", microbatches=(16, 64), limit=32, store=LinearStore()
    )
    assert [row["tried"] == [] for row in rows] == [False, False, True, True]
    table = describe_batches(rows).splitlines()
    assert [line.endswith("above the limit") for line in table[1:]] == [
        *(False, False, True, True)
    ]
    assert "none fits" not in "".join(table)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"remat": True}, "remat=True"),
        ({"microbatch_size": 32}, "microbatch_size=32"),
        ({"microbatches": (None, 0)}, r"microbatches=\(None, 0\)"),
        ({"limit": 0}, "limit=0"),
        ({"limit": -5}, "limit=-5"),
    ],
)
def test_what_is_searched_is_no_field_to_replace(fields, words):
    with pytest.raises(ValueError, match=f"Received: {words}"):
        find_largest_batch("any", store=LinearStore(), **fields)


@pytest.mark.parametrize("unit", [8, 16])
@pytest.mark.parametrize("limit", [8, 100, 128])
def test_bisection_finds_the_largest(unit, limit):
    for bound in range(140):
        tried = []

        def fits(size, bound=bound, tried=tried):
            tried.append(size)
            return size <= bound

        found = largest(fits, unit, limit)
        sizes = [n for n in range(unit, limit + 1, unit) if n <= bound]
        if not sizes:
            sizes = [n for n in (1, 2, 4, 8) if n < unit and n <= bound]
        if limit >= unit:
            assert found == max(sizes, default=None), bound
        assert len(tried) == len(set(tried)) <= 10
    assert largest(lambda size: False, 8, 100, divisible=False) is None


def test_shortage_is_read_from_what_the_compiler_says():
    one_buffer = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on "
        "HBM, the total memory required for HLO temporaries (24.00G) exceeds "
        "available HBM (15.75G). HLO module: jit_train_step."
    )
    assert read_shortage(one_buffer) == (24 * 2**30, int(15.75 * 2**30))
    program = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used "
        "17.50G of 15.48G hbm. Exceeded hbm capacity by 2.02G."
    )
    assert read_shortage(program) == (int(17.5 * 2**30), int(15.48 * 2**30))
    assert read_shortage("INTERNAL: Used 1G of 2G") is None
    words = str(DoesNotFit.by(24 * 2**30, 16 * 2**30))
    assert "24.00 GiB" in words
    assert "8.00 GiB more" in words
    assert "--remat" in words
