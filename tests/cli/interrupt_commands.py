"""Stop commands at many moments, start them again, and compare the outputs.

    python interrupt_commands.py FOLDER TRIES COMMAND...

FOLDER holds what the commands read. Each is a fork of this process, which has
imported all there is but used none of it. Prints a line of JSON for each try.
With `JUMPING_CLOCK` in the environment nothing is stopped, but the clock goes
back and forth by a day all the time.
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
CHOSEN = sys.argv[3:]
for folder in (
    Path(__file__).parents[1],
    Path(__file__).parents[1] / "helpers",
):
    sys.path.insert(0, str(folder))
sys.stdout.reconfigure(line_buffering=True)

import h5py
import jumping_clock
import pyarrow.parquet as pq
from colors import tiny_model
from shortcuts import decode_plainly

import align_keras.curation
import align_keras.data
import align_keras.search
import align_keras.training
from align_keras.cli import main

decode_plainly()

COMMANDS = {
    "pack": ["pack", FOLDER / "photos", "--records-per-shard", 4],
    "index": ["index", FOLDER / "vectors", "--model", FOLDER / "preset"],
    "curate": ["curate", FOLDER / "pairs", "--config", FOLDER / "rules.yaml"],
    "embed": [
        *("embed", FOLDER / "photos", "--model", FOLDER / "preset"),
        *("--images-per-shard", 2),
    ],
    "score": [
        *("score", FOLDER / "photos", "--model", FOLDER / "preset"),
        *("--images-per-shard", 2),
    ],
}
# What none of them has before it is finished; but `train` keeps its best.
FINISHED = {"index": "index.json", "train": "model/config.json"}
JUMPING = "JUMPING_CLOCK" in os.environ
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start(command, output, jumping=False):
    pid = os.fork()
    if pid:
        return pid
    if jumping:
        jumping_clock.begin()
    # It may have been started where interrupts are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(output.with_suffix(".said"), "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if command == "train":
        os._exit(train_tiny_model(output))
    words = [*COMMANDS[command], "--output", output]
    os._exit(main([str(word) for word in words]))


def train_tiny_model(output):
    """Train a model whose step is traced in a moment; its exit status."""
    try:
        align_keras.training.train(
            tiny_model,
            str(FOLDER / "recipe.yaml"),
            data=str(FOLDER / "packed"),
            workdir=output,
            strategy="one-device",
            verbose=False,
        )
    except KeyboardInterrupt:
        return 130
    return 0


def run(command, output, wait=None, number=None):
    """Run it, perhaps with a signal after a while; its status and time."""
    begin = time.perf_counter()
    pid = start(command, output, JUMPING and number is not None)
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
        # Stages are kept, and told apart by their names; and what is logged
        # tells the time.
        apart = (".stages", "said", "tensorboard", "saved_model", "step-")
        if path.is_file() and not any(part in name for part in apart):
            text = path.read_bytes()
            if path.suffix in (".json", ".html"):
                text = b""
            elif path.suffix == ".h5":
                text = weights(path)
            elif path.suffix == ".jsonl":
                lines = map(json.loads, text.splitlines())
                text = repr(
                    [(x["step"], x.get("loss")) for x in lines]
                ).encode()
            elif path.suffix == ".parquet":
                # Threads share the rows out as it happens.
                rows = pq.read_table(path).to_pylist()
                found.setdefault(Path(name).parent, []).extend(rows)
                continue
            found[name] = hashlib.sha256(text).hexdigest()
    for rows in found.values():
        if isinstance(rows, list):
            rows.sort(key=lambda row: row.get("row_id", row.get("key")))
    return found


def weights(path):
    """The arrays of a file, without what tells when it was written."""
    found = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.append((name, item[()].tobytes()))
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    assert found
    return repr(sorted(found)).encode()


random.seed(0)
for command in CHOSEN:
    whole = FOLDER / f"whole-{command}" / "out"
    whole.parent.mkdir()
    status, seconds = run(command, whole)
    assert status == 0, whole.with_suffix(".said").read_text()
    for attempt in range(TRIES):
        number = SIGNALS[attempt % len(SIGNALS)]
        output = FOLDER / f"{command}-{attempt}" / "out"
        output.parent.mkdir()
        wait = None if JUMPING else random.uniform(0, seconds)
        status, _ = run(command, output, wait, number)
        manifest = FINISHED.get(command, "manifest.json")
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
