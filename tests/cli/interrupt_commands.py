"""Stop commands at many moments, start them again, and compare the outputs.

    python interrupt_commands.py FOLDER TRIES

FOLDER holds what the commands read. Each is a fork of this process, which has
imported all there is but used none of it. Prints a line of JSON for each try.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

FOLDER, TRIES = Path(sys.argv[1]), int(sys.argv[2])

import pyarrow.parquet as pq

import align_keras.curation
import align_keras.data
import align_keras.search  # noqa: F401
from align_keras.cli import main

COMMANDS = {
    "pack": ["pack", FOLDER / "photos", "--records-per-shard", 4],
    "index": ["index", FOLDER / "vectors", "--model", FOLDER / "preset"],
    "curate": ["curate", FOLDER / "pairs", "--config", FOLDER / "rules.yaml"],
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start(command, output):
    pid = os.fork()
    if pid:
        return pid
    # It may have been started where interrupts are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(output.with_suffix(".said"), "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    words = [*COMMANDS[command], "--output", output]
    os._exit(main([str(word) for word in words]))


def run(command, output, wait=None, number=None):
    """Run it, perhaps with a signal after a while; its status and time."""
    begin = time.perf_counter()
    pid = start(command, output)
    if wait is not None:
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, time.perf_counter() - begin


def contents(output):
    """Digests of what it wrote, but for times; names of what it left."""
    found = {}
    for path in sorted(output.parent.rglob("*")):
        name = path.relative_to(output.parent).as_posix()
        # Stages are kept, and told apart by their names.
        if path.is_file() and ".stages" not in name and "said" not in name:
            text = path.read_bytes()
            if path.suffix in (".json", ".html"):
                text = b""
            elif path.suffix == ".parquet":
                # Threads share the rows out as it happens.
                rows = pq.read_table(path).to_pylist()
                found.setdefault(Path(name).parent, []).extend(rows)
                continue
            found[name] = hashlib.sha256(text).hexdigest()
    for rows in found.values():
        if isinstance(rows, list):
            rows.sort(key=lambda row: row["row_id"])
    return found


random.seed(0)
for command in COMMANDS:
    whole = FOLDER / f"whole-{command}" / "out"
    whole.parent.mkdir()
    status, seconds = run(command, whole)
    assert status == 0, whole.with_suffix(".said").read_text()
    for attempt in range(TRIES):
        number = SIGNALS[attempt % len(SIGNALS)]
        output = FOLDER / f"{command}-{attempt}" / "out"
        output.parent.mkdir()
        wait = random.uniform(0, seconds)
        status, _ = run(command, output, wait, number)
        manifest = {"index": "index.json"}.get(command, "manifest.json")
        finished = (output / manifest).exists()
        if finished and command == "index":
            # It refuses to write over what is there.
            again = 0
        else:
            again, _ = run(command, output)
        same = contents(output) == contents(whole)
        print(json.dumps([command, number.name, status, finished, again, same]))
        if again == 0 and same:
            shutil.rmtree(output.parent)
