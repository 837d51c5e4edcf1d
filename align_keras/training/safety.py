"""What keeps a run from harm: preemption, and losses that are not finite."""

import collections
import json
import math
import os
import signal
import threading
from pathlib import Path

import keras
import numpy as np

from align_keras.files import atomic_file

# Records that an error names; a file lists them all.
SHOWN = 12


class Preemption:
    """Turns SIGTERM into a checkpoint and an exit with status 0.

    A context manager. Where there is nothing to save, the process exits at
    once: before the first step, and while the model is evaluated. Otherwise
    it exits after the step, see `SaveBest`.

    Args:
        say: callable. Takes a message.
    """

    def __init__(self, say):
        self.say = say
        self.asked = False
        # Whether steps were taken since the last checkpoint.
        self.unsaved = False
        self._before = None
        self._left = False

    def __enter__(self):
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, kind, error, trace):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._left and kind is not None and kind is not SystemExit:
            # TensorFlow replaces an exit from within a trace by its own error.
            raise SystemExit(0) from error

    def _on_signal(self, number, frame):
        self.asked = True
        if not self.unsaved:
            self.leave()

    def leave(self):
        """Exit with status 0."""
        self.say("Stopped by SIGTERM. Run the same command to go on.")
        self._left = True
        raise SystemExit(0)


class LossGuard:
    """Stops a run at the first step whose loss is not finite.

    A loss is looked at when the next step has been started, so that no
    device waits for it.

    Args:
        blame: callable. Takes a step and a reason, and returns the error.
    """

    def __init__(self, blame):
        self.blame = blame
        self._waiting = None

    def watch(self, step, loss):
        """Look at the loss of the step before, and remember this one."""
        self.settle()
        self._waiting = step, loss

    def settle(self):
        """Look at the loss that is still waiting.

        Raises:
            FloatingPointError: It is not finite.
        """
        if self._waiting is None:
            return
        step, loss = self._waiting
        self._waiting = None
        # A mean that was not finite once stays so.
        if not math.isfinite(float(loss)):
            raise self.blame(step, f"the loss is {float(loss)}")

    def check(self, model, step):
        """Make sure that a model is worth saving.

        Raises:
            FloatingPointError: The last loss or a weight is not finite.
        """
        self.settle()
        for variable in (*model.weights, *model.optimizer.variables):
            value = keras.ops.convert_to_numpy(variable)
            if value.dtype.kind not in "iub" and not np.isfinite(value).all():
                raise self.blame(step, f"`{variable.path}` is no more finite")


def nonfinite_error(step, reason, records, path, last_step):
    """Make the error of a step that went wrong, and list its records.

    Args:
        step: int. The number of the step, from 1.
        reason: string.
        records: list of dicts, as `records_of_step` returns them.
        path: string or `pathlib.Path`. The JSON file of all records.
        last_step: int. The step of the last checkpoint.

    Returns:
        A `FloatingPointError`.
    """
    with atomic_file(path) as temporary:
        listed = {"step": step, "reason": reason, "records": records}
        temporary.write_text(json.dumps(listed, indent=1) + "\n")
    keys = collections.defaultdict(list)
    for record in records[:SHOWN]:
        name = record["key"] or f"[{record['index']}]"
        keys[os.path.basename(record["file"])].append(name)
    batch = "; ".join(f"{f}: {', '.join(names)}" for f, names in keys.items())
    if len(records) > SHOWN:
        batch += f"; and {len(records) - SHOWN} more"
    return FloatingPointError(
        f"In step {step}, {reason}. Its batch was {batch} (see `{Path(path)}`)."
        f" The checkpoint of step {last_step} is kept. Look at the records, "
        "lower `learning_rate`, or set `skip_nonfinite` in the recipe."
    )
