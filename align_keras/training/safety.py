"""Handle preemption, unreadable data and losses that are not finite."""

import collections
import contextlib
import json
import logging
import math
import os
import signal
import threading
from pathlib import Path

import numpy as np

from align_keras.io.atomic import atomic_file
from align_keras.training.checkpoints import describe_kept

logger = logging.getLogger("align_keras")

# Exit status of a process that the same command resumes: a temporary failure
# (EX_TEMPFAIL). After status 0, a scheduler would count the run as finished.
UNFINISHED = 75
# Number of records that an error names; a file lists all of them.
SHOWN = 12


class Preemption:
    """Turns SIGTERM into a checkpoint and an exit with status 75.

    This is a context manager. If there is nothing to save, the process exits
    at once: before the first step, and while the model is evaluated.
    Otherwise it exits after the current step, see `SaveBest`. If there are
    several workers, they exit together, because the others would wait for one
    that is missing.

    Args:
        alone: bool. Whether there is no other worker. Defaults to `True`.

    Attributes:
        finish: callable. Called before the exit, for example to wait until
            pending files are written.
    """

    def __init__(self, alone=True):
        self.alone = alone
        self.finish = lambda: None
        self.asked = False
        # Whether steps have been taken since the last checkpoint.
        self.unsaved = False
        self._before = None
        self._left = False

    def __enter__(self):
        # Python delivers signals only to the main thread.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, kind, error, trace):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._left and kind is not None and kind is not SystemExit:
            # TensorFlow replaces an exit within a traced function by an error.
            raise SystemExit(UNFINISHED) from error

    def _on_signal(self, number, frame):
        self.asked, again = True, self.asked
        # A second signal must not interrupt an exit in progress.
        if self.alone and not self.unsaved and not again:
            self.leave()

    def leave(self):
        """Exit with a status on which schedulers restart the run."""
        self.finish()
        logger.info("Stopped by SIGTERM. Run the same command to resume.")
        self._left = True
        raise SystemExit(UNFINISHED)


class LossGuard:
    """Stops a run at the first step whose loss is not finite.

    It checks a loss only once the next step has started, so that no device
    has to wait.

    Args:
        blame: callable. Takes a range of steps and a reason, and returns the
            error to raise.
    """

    def __init__(self, blame):
        self.blame = blame
        self._steps = range(0)
        self._waiting = None

    def watch(self, steps, loss):
        """Check the previous loss, and keep this one for the next call.

        Args:
            steps: range of ints. One step, or all the steps that Keras takes
                at once with `steps_per_execution` and reports one loss for.
            loss: float or scalar tensor.
        """
        self.settle()
        self._steps, self._waiting = steps, loss

    def settle(self):
        """Check the loss that has not been checked yet.

        Raises:
            FloatingPointError: It is not finite.
        """
        if self._waiting is None:
            return
        loss, self._waiting = float(self._waiting), None
        # The loss is a mean over steps: once it is not finite, it stays so.
        if not math.isfinite(loss):
            raise self.blame(self._steps, f"the loss is {loss}")

    def inspector(self):
        """Make a function that checks the weights of this step before saving.

        Returns:
            A callable that takes a `Snapshot`, at any time and in any thread.
            It raises a `FloatingPointError` if a value is not finite.

        Raises:
            FloatingPointError: The last loss is not finite.
        """
        self.settle()
        steps = self._steps

        def inspect(snapshot):
            for path, value in snapshot.arrays():
                if value.dtype.kind in "iub" or np.isfinite(value).all():
                    continue
                reason = f"`{path}` is no longer finite"
                raise self.blame(steps, reason)

        return inspect


@contextlib.contextmanager
def unreadable_named(checkpoints):
    """Raise a short error if a data file disappears or turns out damaged.

    TensorFlow's own error hides the file name behind a long graph trace.

    Args:
        checkpoints: `Checkpoints` of the run.

    Raises:
        OSError: A data file could not be read.
    """
    from tensorflow import errors

    try:
        yield
    except (
        errors.DataLossError,
        errors.NotFoundError,
        errors.PermissionDeniedError,
        errors.UnavailableError,
    ) as error:
        trace = ("Graph execution", "Detected at", "File ", "[[", "Traceback")
        lines = (line.strip() for line in str(error).splitlines())
        lines = [x for x in lines if x and not x.startswith(trace)]
        reason = lines[0].partition(" [[")[0] if lines else type(error).__name__
        raise OSError(
            f"The data cannot be read any more: {reason}. "
            f"{describe_kept(checkpoints.state()['step'])}: bring the file "
            "back, and run the same command again."
        ) from error


def nonfinite_error(steps, reason, records, path, last_step):
    """Make the error for a step that is not finite, and list its records.

    Args:
        steps: range of ints. Numbers of the steps, from 1, of which one is
            not finite.
        reason: string.
        records: list of dicts, as `records_of_step` returns them.
        path: string or `pathlib.Path`. The JSON file to list all records in.
        last_step: int. The step of the last checkpoint.

    Returns:
        A `FloatingPointError`.
    """
    with atomic_file(path) as temporary:
        listed = {"steps": [*steps], "reason": reason, "records": records}
        temporary.write_text(json.dumps(listed, indent=1) + "\n")
    keys = collections.defaultdict(list)
    for record in records[:SHOWN]:
        name = record["key"] or f"[{record['index']}]"
        keys[os.path.basename(record["file"])].append(name)
    batch = "; ".join(f"{f}: {', '.join(names)}" for f, names in keys.items())
    if len(records) > SHOWN:
        batch += f"; and {len(records) - SHOWN} more"
    when = f"step {steps[0]}"
    if len(steps) > 1:
        when = f"one of the steps {steps[0]} to {steps[-1]}"
    return FloatingPointError(
        f"In {when}, {reason}. The records were {batch} (see `{Path(path)}`)."
        f" {describe_kept(last_step)}. Look at the records, lower "
        "`learning_rate`, or set `skip_nonfinite` in the recipe."
    )
