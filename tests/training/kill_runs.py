"""Stop runs of `align-keras train` in many ways, and start them again.

    python kill_runs.py FOLDER

FOLDER gets a working directory for each way. Each run is a fork of this
process, which has imported all there is but used none of it: as good as a
process of its own, and sooner there. Prints JSON: what the runs said.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import tensorflow as tf
from colors import FIELDS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from shortcuts import decode_plainly
from shortcuts import optimise_graphs

from align_keras.cli import main
from align_keras.data import pack
from align_keras.models.snapshot import Snapshot

# With all that a run imports, before the processes part.
from align_keras.training import checkpoints
from align_keras.training import train_model

FOLDER = Path(sys.argv[1])
STEPS = 80
sys.stdout.reconfigure(line_buffering=True)
decode_plainly()
optimise_graphs(False)


def start(function, *arguments, said=os.devnull):
    """Run a function in a fork and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    with open(said, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # To take Python down would take seconds in each.
    os._exit(function(*arguments) or 0)


def end(pid):
    """Wait for a process; its exit status, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def prepare():
    write_images(FOLDER / "photos")
    write_vocabulary(FOLDER / "words.txt")
    captions = FOLDER / "photos" / "captions.csv"
    packed = FOLDER / "packed"
    pack(FOLDER / "photos", packed, captions, records_per_shard=5)
    # Of a single image all are found, so that no evaluation is ever better.
    (FOLDER / "one.csv").write_text("image,caption\nred.png,all red\n")
    pack(FOLDER / "photos", FOLDER / "one", FOLDER / "one.csv")
    model = tiny_model(len(VOCABULARY), dropout=0.05)
    for layer in model._flatten_layers():
        if hasattr(layer, "synchronized"):
            layer.synchronized = True
    model.save_to_preset(str(FOLDER / "preset"))


def train(name, replicas=1, measured=False, dies=None, **fields):
    if dies is not None:
        die(dies)
    if replicas > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * replicas,
        )
    fields = {"steps": STEPS, "checkpoint_every": 10, **fields}
    options = {
        "preset": FOLDER / "preset",
        "recipe": FOLDER / "recipe.yaml",
        "data": FOLDER / "packed",
        "vocabulary": FOLDER / "words.txt",
        "workdir": FOLDER / name,
        "strategy": "mirrored" if replicas > 1 else "one-device",
    }
    if measured:
        options["validation-data"] = FOLDER / "one"
    words = [str(w) for k, v in options.items() for w in (f"--{k}", v)]
    for field, value in fields.items():
        words += ["--set", f"{field}={value}"]
    return main(["train", *words, "--no-export"])


def run(name, stop=None, number=signal.SIGKILL, **options):
    """Run, and send a signal when `stop` holds; the exit status."""
    said = FOLDER / f"{name}.txt"
    pid = start(lambda: train(name, **options), said=said)
    while stop is not None and not stop(FOLDER / name):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit(f"{name} ended too soon: {said.read_text()}")
        time.sleep(0.0005)
    if stop is not None:
        os.kill(pid, number)
    return end(pid)


# === When to stop ===


def reported(step):
    """Some steps after the figures of this one were written."""

    def stop(workdir):
        path = workdir / "metrics.jsonl"
        if path.is_file() and f'{{"step": {step},' in path.read_text():
            time.sleep(0.05)
            return True
        return False

    return stop


def saving(step):
    """A checkpoint after this step is being written."""

    def stop(workdir):
        for path in (workdir / "checkpoints").glob(".step-*.weights.h5"):
            if int(path.name[6:15]) >= step:
                return True
        return False

    return stop


# === Where to die ===

# What the thread that saves reaches in turn, and in which of its saves the run
# dies there: the first have a checkpoint before to fall back on.
PHASES = {
    "before": 2,
    "content": 2,
    "between": 2,
    "whole": 1,
    "model": 1,
}


def die(phase):
    """Have this process die in a phase of a save, while it trains on."""
    saves = 0

    def reach(name):
        if saves == PHASES[phase] and name == phase:
            # The run has a moment to do what will not count.
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)

    class Dying(checkpoints.Checkpoints):
        def _write_checkpoint(self, *arguments):
            nonlocal saves
            saves += 1
            reach("before")
            super()._write_checkpoint(*arguments)
            reach("whole")

        def _write(self, path, state):
            if "weights_sha256" in state:
                reach("between")
            super()._write(path, state)

    write = Snapshot.write

    def write_half(self, path, *arguments):
        write(self, path, *arguments)
        if "checkpoints" not in str(path):
            reach("model")
            return
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        reach("content")
        Path(path).write_bytes(whole)

    train_model.Checkpoints = Dying
    Snapshot.write = write_half


if __name__ == "__main__":
    fields = {**FIELDS, "optimizer": "adam"}
    (FOLDER / "recipe.yaml").write_text(json.dumps(fields))
    if end(start(prepare, said=FOLDER / "prepare.txt")):
        raise SystemExit((FOLDER / "prepare.txt").read_text())
    far = {"checkpoint_every": 10 * STEPS}
    pair = {"replicas": 2}
    patient = {"measured": True, "patience": 3}
    report = {
        "whole": run("whole"),
        "killed": [
            *(run("killed", dies=phase) for phase in PHASES),
            run("killed"),
        ],
        "far": run("far", **far),
        "terminated": [
            run("terminated", reported(20), signal.SIGTERM, **far),
            run("terminated", **far),
        ],
        "patient": run("patient", **patient),
        "killed patient": [
            run("killed_patient", reported(30), **patient),
            run("killed_patient", **patient),
        ],
        "pair": run("pair", **pair),
        "killed pair": [
            run("killed_pair", saving(20), **pair),
            run("killed_pair", reported(60), signal.SIGTERM, **pair),
            run("killed_pair", **pair),
        ],
    }
    print(json.dumps(report))
