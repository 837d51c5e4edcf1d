"""Bisection against trying everything, and what the compiler says."""

import pytest

from align_keras.planning.search import largest

pytest.importorskip("jax")

from align_keras.planning.compile import DoesNotFit
from align_keras.planning.compile import read_shortage


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
