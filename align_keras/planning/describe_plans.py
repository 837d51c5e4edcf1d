"""Format plans as text for the terminal."""

GIB = 2**30
MEMORY = {
    "weights": "weights and statistics",
    "optimizer": "state of the optimizer",
    "batch": "images and tokens",
    "padding": "padding of arrays",
    "activations": "activations and gradients",
    "results": "results",
    "code": "code",
}
TIMES = {
    "compute": "arithmetic at its peak",
    "memory": "memory traffic at its peak",
    "interconnect": "collectives at their peak",
    "roofline": "roofline (longest above)",
    "compiler": "the compiler's optimum",
    "cycles": "the compiler's cycles",
}


def describe_plan(plan: dict) -> str:
    """Describe a plan in lines of text.

    Args:
        plan: dict. The result of `align_keras.planning.plan`.

    Returns:
        A string.
    """
    recipe = plan["recipe"]
    cores, batch = plan["cores"], plan["batch_size"]
    lines = [
        f"{plan['preset']} on {plan['topology']}: {cores:,} cores, "
        f"{plan['batch_per_core']:,} pairs each, {batch:,} in all",
        f"{plan['parameters'] / 1e6:,.1f} M parameters, {recipe['optimizer']}, "
        f"{recipe['precision']}, {recipe['image_size']} pixels, "
        f"{recipe['sequence_length']} tokens" + _ways(plan),
        "",
        "Memory of a core, GiB",
        *_memory(plan["memory"]),
        "",
        "One step",
        _line(
            "the model's arithmetic",
            f"{plan['flops']['model'] / 1e12:,.3f} TFLOP, "
            f"{plan['flops']['model'] / batch / 1e9:,.1f} GFLOP per pair",
        ),
        _line(
            "the program's",
            f"{plan['flops']['compiled'] / 1e12:,.3f} TFLOP",
        ),
        _line(
            "memory traffic per core",
            f"{plan['bytes'] / cores / 1e9:,.3f} GB",
        ),
        *(
            _line(
                f"{found['kind']}, {found['count']} times",
                f"{found['bytes'] / 1e6:,.1f} MB",
            )
            for found in plan["collectives"] or ()
        ),
        *_unread(plan),
        "",
        "Time of a step",
        *(
            _line(words, f"{plan['seconds'][name]:.4f} s")
            for name, words in TIMES.items()
            if name in plan["seconds"]
        ),
        _line(
            "the longest of these",
            f"{plan['seconds']['step']:.4f} s, "
            f"{_speed(plan):,.1f} pairs/s per core",
        ),
        "",
        *_schedule(plan["schedule"]),
        f"Planning took {plan['planning']['compile_seconds']:,.0f} s to "
        f"compile and {plan['planning']['host_peak_bytes'] / GIB:.1f} GiB of "
        "this machine's memory.",
    ]
    return "\n".join(lines)


def _unread(plan):
    if plan["collectives"] is not None:
        return []
    return [
        "  This version of JAX cannot read the program that libtpu made: "
        "collectives and cycles are unknown."
    ]


def describe_batches(results: list[dict]) -> str:
    """Format the result of `find_largest_batch` as a table."""
    lines = [
        f"{'remat':<7}{'microbatch':>11}{'largest batch':>20}{'GiB':>9}"
        f"{'s/step':>11}{'pairs/s/core':>16}"
    ]
    for row in results:
        microbatch = row["microbatch_size"] or "–"
        line = f"{'yes' if row['remat'] else 'no':<7}{microbatch:>11}"
        if row["plan"] is None:
            # Microbatches may be larger than the limit of the search.
            words = "none fits" if row["tried"] else "above the limit"
            lines.append(f"{line}{words:>20}")
            continue
        plan, batch = row["plan"], f"{row['batch_per_core']:,}"
        if row["at_limit"]:
            batch = f">= {batch}, the limit"
        lines.append(
            f"{line}{batch:>20}"
            f"{plan['memory']['total'] / GIB:>9.2f}"
            f"{plan['seconds']['step']:>11.4f}{_speed(plan):>16,.1f}"
        )
    return "\n".join(lines)


def describe_chips(results: list[dict]) -> str:
    """Format the result of `compare_chips` as a table."""
    lines = [
        f"{'topology':<13}{'cores':>7}{'batch/core':>14}{'GiB':>7}"
        f"{'of':>7}{'s/step':>11}{'days':>9}{'core hours':>13}"
        + ("price".rjust(13) if _prices(results) else "")
    ]
    measure = common_time(results)
    for row in results:
        line = f"{row['topology']:<13}{row['cores']:>7,}"
        if "error" in row:
            lines.append(f"{line}  {row['error']}")
            continue
        plan = row["plan"]
        memory, schedule = plan["memory"], plan["schedule"]
        seconds = plan["seconds"][measure]
        share = seconds / plan["seconds"]["step"]
        line += (
            f"{plan['batch_per_core']:>14,}"
            f"{memory['total'] / GIB:>7.2f}{memory['capacity'] / GIB:>7.2f}"
            f"{seconds:>11.4f}{share * schedule['days']:>9,.2f}"
            f"{share * schedule['core_hours']:>13,.0f}"
        )
        if "price" in schedule:
            line += f"{share * schedule['price']:>13,.0f}"
        lines.append(line)
    if measure == "roofline":
        lines.append(
            "This version of JAX cannot read all of the programs, so all times "
            "are the roofline's."
        )
    return "\n".join(lines)


def common_time(results: list[dict]) -> str:
    """Choose the estimate of time that all plans have.

    Args:
        results: list of dicts. The result of `compare_chips`.

    Returns:
        `"step"`, or `"roofline"` if the cycles of a plan are unknown because
        its program could not be read.
    """
    plans = [row["plan"] for row in results if "plan" in row]
    is_read = all(plan["collectives"] is not None for plan in plans)
    return "step" if is_read else "roofline"


def _prices(results):
    return any("price" in r["plan"]["schedule"] for r in results if "plan" in r)


def _speed(plan):
    return plan["batch_per_core"] / plan["seconds"]["step"]


def _ways(plan):
    recipe, ways = plan["recipe"], []
    if recipe["remat"]:
        ways.append("remat")
    if recipe["microbatch_size"]:
        ways.append(f"microbatches of {recipe['microbatch_size']}")
    if plan["shard_state"]:
        ways.append("state split over the cores")
    return "".join(f", {way}" for way in ways)


def _memory(memory):
    for name, words in MEMORY.items():
        yield _line(words, f"{memory[name] / GIB:.3f}")
    total, capacity = memory["total"], memory["capacity"]
    yield _line(
        "all",
        f"{total / GIB:.3f} of {capacity / GIB:.2f} ({total / capacity:.0%})",
    )


def _schedule(schedule):
    line = (
        f"The recipe's {schedule['pairs']:,} pairs: {schedule['steps']:,} "
        f"steps, {schedule['days']:,.2f} days, "
        f"{schedule['core_hours']:,.0f} core hours"
    )
    if "price" in schedule:
        line += f", at a price of {schedule['price']:,.2f}"
    return [
        line + ".",
        "docs/planning.md says how far to trust these numbers.",
    ]


def _line(words, numbers):
    return f"  {words:<28}{numbers}"
