"""Time programs in turns, each in its own process.

A side is a Python function that prepares something and returns the function to
time. It runs in its own process, since backends and thread pools cannot share
one, and waits there for its turn: A B C A B C. All sides of a table have the
same number of threads. While one runs, the others are stopped, including their
background threads. Processor time is recorded as well as wall time, because it
varies less on a busy machine.
"""

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

# With `taskset -c 0` in front of a benchmark, all its sides use one core.
THREADS = len(os.sched_getaffinity(0))
HERE = Path(__file__).resolve().parent
_SERVE = "import turns; turns.serve()"


class Side:
    """One program of a comparison.

    Args:
        name: string. Its name in the table.
        function: string. `"module:function"` in this directory. Called with
            `arguments`; returns a callable without arguments that does the
            work once and waits for its end.
        arguments: dict that can be written as JSON.
        environment: dict of additional environment variables.
    """

    def __init__(self, name, function, arguments=None, environment=None):
        self.name = name
        self.seconds = []
        self.processor = []
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={**quiet(), **(environment or {})},
        )
        answer = self._ask({"function": function, "arguments": arguments or {}})
        self.seconds_to_prepare = time.perf_counter() - start
        self.processor_to_prepare = answer["processor"]

    def take_turn(self):
        answer = self._ask({"run": True})
        self.seconds.append(answer["seconds"])
        self.processor.append(answer["processor"])

    def close(self):
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, message):
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps(message), file=self._process.stdin, flush=True)
        # Libraries also print to this stream.
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                self._process.send_signal(signal.SIGSTOP)
                return json.loads(line.removeprefix(_ANSWER))
        raise RuntimeError(f"The side {self.name!r} stopped: see above.")


_ANSWER = "answer of a side: "


def quiet():
    """Return the environment of a side: this checkout first, few messages."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def serve():
    """Prepare, then run on request, in the process of a side."""

    def answer(**values):
        print(_ANSWER + json.dumps(values), flush=True)

    first = json.loads(sys.stdin.readline())
    module, _, function = first["function"].partition(":")
    function = getattr(importlib.import_module(module), function)
    run = function(**first["arguments"])
    answer(processor=time.process_time())
    for _ in sys.stdin:
        start = time.perf_counter(), time.process_time()
        run()
        answer(
            seconds=time.perf_counter() - start[0],
            processor=time.process_time() - start[1],
        )


def in_turns(sides, rounds, warm_up=1):
    """Run sides in turns.

    Args:
        sides: list of `Side`.
        rounds: int. Timed runs of each side.
        warm_up: int. Untimed runs of each side beforehand.

    Returns:
        Pair of dicts from name to the list of seconds of each run: wall
        seconds, and processor seconds.
    """
    for side in sides:
        for _ in range(warm_up):
            side.take_turn()
        side.seconds.clear()
        side.processor.clear()
    for _ in range(rounds):
        for side in sides:
            side.take_turn()
    for side in sides:
        side.close()
    return (
        {side.name: side.seconds for side in sides},
        {side.name: side.processor for side in sides},
    )


def spread(values):
    """Return half the interquartile range, divided by the median."""
    if len(values) < 3:
        return (max(values) - min(values)) / 2 / statistics.median(values)
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def fitted_exponent(sizes, seconds):
    """Fit `a * size ** b` by least squares of the logarithms; return `b`."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
