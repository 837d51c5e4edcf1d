"""Plans of a small model, against counts by hand."""

import contextlib
import fcntl
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import pytest
from towers import towers

pytest.importorskip("jax")

from align_keras.planning.chips import CHIPS
from align_keras.planning.describe_plans import describe_chips

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU,
    reason='libtpu is not installed: pip install "align-keras[plan]"',
)

# The model of small_plans.py: a convolution, vectors of 50 tokens, two
# projections to 24 and the temperature; scale and shift of a normalisation,
# and its two statistics.
TRAINED = 3 * 3 * 3 * 8 + 2 * 8 + 50 * 16 + 9 * 24 + 17 * 24 + 1
STATISTICS = 2 * 8
# Forward: 8x8 positions of the convolution, and the projections.
FORWARD = 2 * (8 * 8 * 8 * 27 + 8 * 24 + 16 * 24)

# Billions of multiplications at the size that a network is published with,
# places on a side of its last map, channels there and in the head.
PUBLISHED = {
    "b0": (0.39, 7, 320, 1280),
    "b1": (0.69, 8, 320, 1280),
    "b2": (0.99, 9, 352, 1408),
    "b3": (1.83, 10, 384, 1536),
    "b4": (4.39, 12, 448, 1792),
    "b5": (10.27, 15, 512, 2048),
    "b6": (19.07, 17, 576, 2304),
    "b7": (37.75, 19, 640, 2560),
    "l2": (475.7, 25, 1376, 5504),
}


TOWERS = towers("b0", "b3", "l2")


@pytest.fixture(scope="module")
def plans(tmp_path_factory, run_once):
    directory = tmp_path_factory.mktemp("plans")
    run_once(
        "small_plans.py",
        directory,
        *TOWERS,
        *["tpu"] * HAS_LIBTPU,
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
    )
    return json.loads((directory / "plans.json").read_text()), directory


def check_bytes(plan, trained=TRAINED):
    """`trained` is what a core holds of that."""
    memory, batch = plan["memory"], plan["batch_per_core"]
    assert plan["parameters"] == TRAINED
    assert memory["weights"] == 4 * (trained + STATISTICS)
    # Two moments, and the number of steps.
    assert memory["optimizer"] - 4 == 2 * 4 * trained
    assert memory["batch"] == batch * 4 * (32 * 32 * 3 + 2 * 8)
    kinds = [v for k, v in memory.items() if k not in ("total", "capacity")]
    assert memory["total"] == sum(kinds) <= memory["capacity"]
    assert memory["activations"] > 0


def check_schedule(plan):
    schedule, seconds = plan["schedule"], plan["seconds"]
    assert schedule["pairs"] == schedule["steps"] * plan["batch_size"]
    days = schedule["steps"] * seconds["step"] / 86_400
    assert schedule["days"] == pytest.approx(days)
    hours = schedule["days"] * 24 * plan["cores"]
    assert schedule["core_hours"] == pytest.approx(hours)
    assert seconds["step"] == max(seconds.values())


@pytest.mark.parametrize("name", TOWERS)
def test_flops_of_towers(name, plans):
    """Against published counts of multiplications.

    These include the head, which ALIGN leaves out: a convolution over the last
    map, and 1000 classes.
    """
    billions, places, features, head = PUBLISHED[name]
    expected = billions * 1e9 - places**2 * features * head - head * 1000
    found = plans[0]["towers"][name] / 2
    assert found == pytest.approx(expected, rel=0.02)


def test_flops_of_text_tower(plans):
    base = plans[0]["towers"]["base"]
    assert base / 2 == pytest.approx(5.51e9, rel=0.01)


def test_compiled_flops_where_products_are_nearly_all(plans):
    """The compiler's count stands beside ours of three forward passes."""
    flops = plans[0]["products"]["flops"]
    assert flops["compiled"] == pytest.approx(flops["model"], rel=0.05)


def test_plan_of_this_machine(plans):
    results, directory = plans
    result = results["command"]
    assert result["status"] == 0, result["error"]
    plan = json.loads((directory / "plan" / "plan.json").read_text())
    check_bytes(plan)
    check_schedule(plan)
    assert plan["batch_size"] == 8 * plan["cores"]
    assert plan["flops"]["model"] == 3 * FORWARD * plan["batch_size"]
    # The compiler counts every operation, and the products of the loss.
    ratio = plan["flops"]["compiled"] / plan["flops"]["model"]
    assert 0.8 < ratio < 3
    assert "interconnect" not in plan["seconds"]
    schedule = plan["schedule"]
    assert schedule["price"] == pytest.approx(2.5 * schedule["core_hours"])
    assert f"{schedule['price']:,.2f}" in result["output"]
    assert f"{plan['seconds']['step']:.4f} s" in result["output"]
    roofline = plan["seconds"]["roofline"]
    assert re.search(rf"longest above\) +{roofline:.4f} s", result["output"])


def test_command_explains_what_is_wrong(plans):
    results = plans[0]
    for name, words in (
        ("unknown", r"no topology `v9:2x2`.*v3:2x2.*v6e:16x16"),
        ("no_libtpu", r'pip install "align-keras\[plan\]"'),
        ("uneven", "microbatch_size=3"),
    ):
        assert results[name]["status"] == 2
        assert re.search(words, results[name]["error"]), results[name]


def test_fields_are_assigned(plans):
    result = plans[0]["assigned"]
    assert result["status"] == 0, result["error"]
    recipe = json.loads(result["output"])["recipe"]
    # It divides the batch of a core, and not the recipe's 16,384.
    assert (recipe["remat"], recipe["microbatch_size"]) == (True, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no field", "unknown field `topology`"),
        ("rows by --set", "give `--vocabulary-size`"),
        ("searched remat", "`--search` tries batches.*`remat`"),
        ("searched size", "`--search` tries batches.*`--microbatch N`"),
        ("limit alone", "`--limit` belongs to `--search`"),
        ("limit", "--limit: must be at least 1.*-5"),
        ("limit of 0", "--limit: must be at least 1.*0"),
        ("microbatch", "--microbatch: must be at least 1"),
        ("size in words", "must be of type int.*microbatch_size=True"),
        ("size of 0", "at least 1.*microbatch_size=0"),
        ("resolution twice", "--resolution 32, --set image_size=64"),
        ("remat twice", "`remat` is set twice.*--remat, --set remat=false"),
        ("price", "--price-per-core-hour: must be at least 0"),
        ("vocabulary", "50 tokens.*vocabulary of 60"),
        ("no vocabulary", "--vocabulary-size: must be at least 1"),
        ("no preset", "no preset named `align_b3`"),
    ],
)
def test_command_line_is_checked_first(name, words, plans):
    results, directory = plans
    result = results["refusals"][name]
    assert result["status"] == 2 and result["output"] == ""
    assert re.search(words, result["error"]), result
    assert not (directory / "none").exists()


def test_functions_refuse_what_the_command_does(plans):
    results = plans[0]
    assert "price_per_core_hour=-1" in results["no price"]
    assert "vocabulary_size=0" in results["no words"]


def test_missing_jax_names_the_extra():
    code = (
        "import sys; sys.modules['jax'] = None; "
        "from align_keras.cli import main; "
        "main(['plan', '--preset', 'align_b0_bert_tiny'])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert 'pip install "align-keras[plan]"' in result.stderr
    assert "Traceback" not in result.stderr


@needs_libtpu
def test_libtpu_is_silent_while_its_lock_is_held():
    """What it writes, it writes past Python."""
    code = (
        "from align_keras.planning.topology import topology_devices; "
        "print(len(topology_devices('v5e:1x1')))"
    )
    with open("/tmp/libtpu_lockfile", "a") as lock:
        # Another process may hold it, which is as good.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "KERAS_BACKEND": "jax",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )
    assert (result.stdout, result.stderr) == ("1\n", "")


@needs_libtpu
def test_chips_side_by_side(plans):
    results, directory = plans
    assert results["compared"]["status"] == 0, results["compared"]["error"]
    rows = json.loads(results["compared"]["output"])
    written = json.loads((directory / "chips" / "compare.json").read_text())
    assert rows == written
    assert (directory / "chips" / "compare.png").stat().st_size > 10_000
    # A second time, nothing is compiled: even the durations are the same.
    assert results["again"]["output"] == results["compared"]["output"]
    v5e, v3, v6e = rows
    assert "256 cores cannot share a batch of 32" in v6e["error"]
    for row, cores in ((v5e, 4), (v3, 8)):
        plan, chip = row["plan"], CHIPS[row["topology"].partition(":")[0]]
        assert plan["cores"] == cores
        assert plan["batch_size"] == 32
        assert plan["flops"]["model"] == 3 * FORWARD * 32
        check_bytes(plan)
        check_schedule(plan)
        check_times(plan, chip)


@needs_libtpu
def test_chips_are_compared_by_what_is_known_of_all(plans):
    """The cycles of one are unknown; the table has the roofline's times."""
    rows = json.loads(plans[0]["compared"]["output"])
    known = describe_chips(rows)
    unread = rows[0]["plan"]
    unread["collectives"] = None
    lines = describe_chips(rows).splitlines()
    assert "all times are the roofline's" in lines[-1]
    assert lines[-1] not in known
    for row, line in zip(rows[:2], lines[1:], strict=False):
        plan = row["plan"]
        seconds = plan["seconds"]["roofline"]
        assert f"{seconds:.4f}" in line
        days = plan["schedule"]["steps"] * seconds / 86_400
        assert f"{days:,.2f}" in line.split()


def check_times(plan, chip):
    """Times are amounts by published rates of a core."""
    seconds, cores = plan["seconds"], plan["cores"]
    peak = chip.peak_flops / chip.devices
    flops = plan["flops"]["compiled"] / cores
    assert seconds["compute"] == pytest.approx(flops / peak, rel=1e-3)
    rate = chip.bandwidth / chip.devices
    traffic = plan["bytes"] / cores
    assert seconds["memory"] == pytest.approx(traffic / rate, rel=1e-3)
    assert 0 < seconds["compiler"] < seconds["cycles"]
    # All gradients are summed up over the cores, in two or four bytes each.
    (summed,) = [
        found["bytes"]
        for found in plan["collectives"]
        if found["kind"] == "all-reduce"
    ]
    assert 2 * TRAINED <= summed <= 8 * TRAINED
    sent = 2 * (cores - 1) / cores * summed * chip.devices
    assert seconds["interconnect"] >= sent / chip.interconnect


@needs_libtpu
def test_state_split_over_cores(plans):
    """Of two cores, each holds half of every matrix and kernel."""
    plan = plans[0]["split"]
    assert plan["cores"] == 2
    matrices = 3 * 3 * 3 * 8 + 50 * 16 + 8 * 24 + 16 * 24
    check_bytes(plan, TRAINED - matrices // 2)


@needs_libtpu
def test_search_with_the_compiler(plans):
    rows = plans[0]["searched"]
    ways = [(row["microbatch_size"], row["remat"]) for row in rows]
    assert ways == [(None, False), (None, True), (8, False), (8, True)]
    for row in rows:
        assert row["batch_per_core"] == row["plan"]["batch_per_core"] == 16
        assert [size for size, _ in row["tried"]] == [8, 16]
        check_bytes(row["plan"])
    # Either way to save memory computes the forward pass again, or most of it.
    counts = [row["plan"]["flops"]["compiled"] for row in rows]
    again = FORWARD * 16 / 2
    assert min(counts[1], counts[2]) > counts[0] + again
    assert counts[3] > max(counts[1], counts[2]) + again


@needs_libtpu
def test_a_program_that_jax_cannot_read(plans):
    results, directory = plans
    assert results["unread"]["status"] == 0, results["unread"]["error"]
    assert "collectives and cycles are unknown" in results["unread"]["output"]
    plan = json.loads((directory / "unread" / "plan.json").read_text())
    check_bytes(plan)
    check_schedule(plan)
    assert plan["collectives"] is None
    assert {"compute", "memory"} < set(plan["seconds"])
    assert not {"cycles", "interconnect"} & set(plan["seconds"])


@needs_libtpu
def test_what_does_not_fit_says_by_how_much(plans):
    found = plans[0]["too_large"]
    least = 3 * 4 * 2**28 * 16
    assert found["needed"] > least
    capacity = CHIPS["v5e"].capacity
    assert found["capacity"] == pytest.approx(capacity * 2**30, rel=1e-3)
    more = (found["needed"] - found["capacity"]) / 2**30
    assert math.isfinite(more) and f"{more:.2f} GiB more" in found["message"]
    assert "--shard-state" in found["message"]
