"""Tables of results, and the file that holds them."""

import argparse
import re
import statistics
from pathlib import Path

import turns

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = (
    "| | median | spread | theirs / ours | in processor time |\n"
    "|---|---:|---:|---:|---:|\n"
)


def parser(description):
    """Make a parser of the arguments that all benchmarks have."""
    result = argparse.ArgumentParser(description=description.partition("\n")[0])
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument(
        "--write",
        action="store_true",
        help="put the table into RESULTS.md",
    )
    return result


def rows(times, ours, scale=1e3, unit="ms", best=True, against=None):
    """Format a comparison as a table, a row for each side.

    Args:
        times: the return value of `turns.in_turns`.
        ours: list of names. Our sides; every other side is compared with the
            best of these.
        scale: float. Multiplies the seconds.
        unit: string. The unit of the product.
        best: bool. Whether a last row compares the best of each. Defaults to
            `True`.
        against: list of names. Those of our sides with which the others are
            compared. Defaults to `None`: all of ours.
    """
    against = ours if against is None else against
    seconds, processor = (
        {name: statistics.median(values) for name, values in kind.items()}
        for kind in times
    )

    def ratios(names):
        return " | ".join(
            f"{min(kind[n] for n in names) / min(kind[n] for n in against):.2f}"
            for kind in (seconds, processor)
        )

    lines = []
    for name, median in seconds.items():
        lines.append(
            f"| {name} | {scale * median:.4g} {unit} | "
            f"{100 * turns.spread(times[0][name]):.0f} % | "
            f"{' | ' if name in ours else ratios([name])} |\n"
        )
    theirs = [name for name in seconds if name not in ours]
    if theirs and best:
        lines.append(
            f"| **best of theirs, best of ours** | | | {ratios(theirs)} |\n"
        )
    return "".join(lines)


def publish(args, title, text, name):
    """Print a table, and with `--write` also put it into RESULTS.md.

    There, two comments with the table's name mark its place; the text around
    them is left unchanged.
    """
    table = f"{title}\n\n{text}"
    print(table, flush=True)
    if not args.write:
        return
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before = RESULTS.read_text()
    pattern = re.escape(start) + ".*?" + re.escape(end)
    if not re.search(pattern, before, re.DOTALL):
        raise ValueError(f"{RESULTS} has no place for a table: {start} {end}")
    block = f"{start}\n{table}{end}"
    after = re.sub(pattern, lambda _: block, before, flags=re.DOTALL)
    RESULTS.write_text(after)
