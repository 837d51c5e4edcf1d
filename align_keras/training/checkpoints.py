import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil

import h5py
import keras
import ml_dtypes  # noqa: F401, makes NumPy know bfloat16
import numpy as np

from align_keras.io.atomic import atomic_file
from align_keras.io.background import Background
from align_keras.io.mirrors import publish
from align_keras.io.paths import local_path
from align_keras.models.lora import lora_variables
from align_keras.models.lora import without_lora
from align_keras.models.snapshot import Snapshot
from align_keras.models.snapshot import to_host

# Upper bound of the bytes that HDF5 adds to the values of a variable.
HDF5_OVERHEAD = 4096
# Group in a weight file that is not Keras's own.
LORA = "lora"

logger = logging.getLogger("align_keras")


def describe_kept(step):
    """Say which checkpoint a run can resume from, without a full stop."""
    if not step:
        return "There is no checkpoint yet"
    return f"The checkpoint of step {step} is kept to resume from"


class Checkpoints:
    """Saves and restores the checkpoints of a working directory.

    A checkpoint is a file with the weights and the optimizer's state, and a
    JSON file with everything else: the states of random generators and
    metrics, and what the caller adds. The JSON file is written last and holds
    checksums of both, so that an incomplete or damaged checkpoint is detected
    and the one before it is used instead.

    `save` blocks only while it copies the state to host memory. A background
    thread writes it, one checkpoint at a time. Used as a context manager, it
    waits for the last one on exit.

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        state: dict. What `state` returns until something is saved. Defaults
            to `None`: the state in the newest intact checkpoint.
        keep: int. Number of checkpoints to keep. Defaults to `2`.
        writes: bool. Whether this process writes checkpoints. A process that
            does not still gathers the values of the model, which needs all
            processes, but discards them. Defaults to `True`.
    """

    def __init__(self, workdir, state=None, keep=2, writes=True):
        self.directory = local_path(workdir) / "checkpoints"
        self.keep = keep
        self.writes = writes
        self._state = state
        self._passed_over = set()
        # A file received from another process, deleted once it is read.
        self._received = None
        self._background = Background()
        # Raises the error of a failed write, without waiting for writes.
        self.check = self._background.check
        # These wait until all is written, `finish` only for some seconds.
        self.wait = self._background.wait
        self.finish = self._background.finish

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.wait()
        else:
            # Report the error that ended the run, not errors it led to.
            with contextlib.suppress(Exception):
                self.wait()

    def state(self):
        """Return the state in the newest intact checkpoint.

        Returns:
            A dict with `"step"` (0 for a fresh run) and whatever else was
            passed to `save`.

        Raises:
            ValueError: There are checkpoints, but none of them is intact.
        """
        if self._state is None:
            self._state = self._newest()
        return self._state

    def share(self, workers):
        """Make all workers resume from the checkpoint of the first one.

        The first worker sends the checkpoint to workers that do not have it
        on disk.

        Args:
            workers: `Workers`.

        Raises:
            ValueError: No checkpoint is intact. All workers raise it.
        """
        if workers.count == 1:
            return
        found = {}
        if workers.is_first:
            try:
                found = {"state": self.state()}
            except ValueError as error:
                found = {"error": str(error)}
        found = workers.send(found)
        if "error" in found:
            raise ValueError(found["error"])
        self._state = found["state"]
        if not self._state["step"]:
            return
        path = _weights(self._path(self._state["step"]))
        digest = self._state["weights_sha256"]
        lacks = not (path.is_file() and _digest(path) == digest)
        (lacking,) = workers.sums(float(lacks))
        if not lacking:
            return
        logger.info("Sending %s to %d workers.", path.name, lacking)
        if not lacks:
            workers.send_file(path)
            return
        with atomic_file(path) as temporary:
            workers.send_file(path, temporary)
        self._received = path

    def _path(self, step):
        return self.directory / f"step-{step:09d}"

    def _newest(self):
        reason = None
        for path in self._all():
            try:
                state = self._read(path)
            except ValueError as error:
                reason = error
                self._passed_over.add(path)
                logger.warning("Passed over a checkpoint: %s", error)
            else:
                return state
        # The first checkpoint of a run may have been interrupted.
        if reason is None or not list(self.directory.glob("step-*.json")):
            return {"step": 0}
        raise ValueError(
            f"No checkpoint in `{self.directory}` is complete. {reason} "
            "Restore them from a copy, or start again in another working "
            "directory."
        )

    def _all(self):
        """List the paths of checkpoints without suffix, newest first."""
        stems = {
            path.name.partition(".")[0]
            for path in self.directory.glob("step-*")
        }
        return [self.directory / stem for stem in sorted(stems, reverse=True)]

    def _read(self, path):
        """Read the state of a checkpoint and verify both of its files."""
        weights, state_path = _weights(path), _sidecar(path)
        for needed in (weights, state_path):
            if not needed.is_file():
                raise ValueError(f"There is no `{needed}`.")
        try:
            state = json.loads(state_path.read_bytes())
            digest = state.pop("sha256")
            whole = digest == _digest_of(state)
        except (
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            RecursionError,
        ):
            whole = False
        if not whole:
            raise ValueError(f"`{state_path}` is damaged.")
        if _digest(weights) != state["weights_sha256"]:
            raise ValueError(f"`{weights}` is damaged or incomplete.")
        return state

    def save(self, model, step, inspect=None, **state):
        """Start saving the model and its optimizer after `step` steps.

        Training may continue as soon as this returns. It waits for the save
        before this one. Until this one is written, `state` returns the state
        before it.

        Args:
            model: `keras.Model`, compiled.
            step: int.
            inspect: callable. Takes the `Snapshot` before it is written, and
                raises an error if it should not be written. Defaults to
                `None`.
            **state: Further entries for `state` to return; must be JSON
                values.

        Raises:
            OSError: There is no space left, or the save before this one
                failed. If this one fails, `check` and `wait` raise the error
                later. The previous checkpoint is kept.
        """
        self.wait()
        path = self._path(step)
        try:
            if self.writes:
                self._require_room(model)
        except OSError as error:
            raise self.explain(path, error) from error
        with without_lora(model):
            snapshot = Snapshot(model)
        lora = [to_host(v) for v in lora_variables(model)]
        state = {
            "step": step,
            "random": _values(_random(model)),
            "metrics": _values(model.metrics_variables),
            **state,
        }
        if not self.writes:
            self._state = _as_read(state)
            return

        def write():
            if inspect is not None:
                inspect(snapshot)
            try:
                self._write_checkpoint(path, snapshot, lora, state)
            except (OSError, RuntimeError) as error:
                raise self.explain(path, error) from error

        self._background.start(write)

    def _write_checkpoint(self, path, snapshot, lora, state):
        # Keras chooses the format by the suffix.
        with atomic_file(_weights(path), ".weights.h5") as temporary:
            snapshot.write(temporary)
            _append_lora(temporary, lora)
            digest = _digest(temporary)
        self._write(path, {**state, "weights_sha256": digest})
        self._passed_over.discard(path)
        # A damaged one does not count, whether its step is lower or higher.
        intact = [p for p in self._all() if p not in self._passed_over]
        for old in {*self._passed_over, *intact[self.keep :]}:
            # Weights go first: alone, they would look like an unfinished save.
            _weights(old).unlink(missing_ok=True)
            _sidecar(old).unlink(missing_ok=True)

    def after(self, job):
        """Write something else after the checkpoint that is being saved.

        Args:
            job: callable. It is not called if the checkpoint fails, nor in a
                process that does not write.
        """
        if self.writes:
            self._background.start(job)

    def _require_room(self, model):
        """Fail before anything is written: HDF5 crashes on a full disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # The best model is written next, without the optimizer.
        variables = [*model.weights, *model.weights, *model.optimizer.variables]
        needed = sum(
            math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables
        )
        needed += len(variables) * HDF5_OVERHEAD
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def explain(self, path, error):
        """Make an error that tells what to do when a file was not written.

        Args:
            path: `pathlib.Path`. The file.
            error: Exception. The reason.

        Returns:
            An `OSError`.
        """
        # HDF5 fails again when it closes the file; its first error is the
        # cause.
        while error.__context__ is not None:
            error = error.__context__
        number = getattr(error, "errno", None)
        return OSError(
            f"`{path}` could not be written: "
            f"{os.strerror(number) if number else error}. "
            f"{describe_kept(self.state()['step'])}: make room, and run the "
            "same command again."
        )

    def update(self, **state):
        """Change the state in the newest checkpoint, but not its weights.

        Like `save`, it returns before it is written, and is written after all
        earlier saves.
        """
        if not self.writes:
            self._state = _as_read({**self.state(), **state})
            return

        def write():
            path = self._path(self.state()["step"])
            self._write(path, {**self.state(), **state})

        self._background.start(write)

    def _write(self, path, state):
        state = _as_read(state)
        with atomic_file(_sidecar(path)) as temporary:
            signed = {**state, "sha256": _digest_of(state)}
            temporary.write_text(json.dumps(signed))
        self._state = state
        publish(self.directory.parent)

    def restore(self, model, fresh_optimizer=False):
        """Load the newest intact checkpoint into a compiled model.

        The states of metrics are left to `restore_metrics`, because `fit`
        resets metrics when it starts.

        Args:
            model: `keras.Model`, compiled.
            fresh_optimizer: bool. Whether to leave the optimizer as it is,
                because it trains other variables. Defaults to `False`.

        Returns:
            int. The number of steps after which the checkpoint was saved.
        """
        state = self.state()
        step = state["step"]
        if step:
            path = _weights(self._path(step))
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            optimizer = model.optimizer
            if fresh_optimizer:
                model.optimizer = None
            model.load_weights(path)
            model.optimizer = optimizer
            _load_lora(path, model)
            _assign(_random(model), state["random"])
            if self._received is not None:
                self._received.unlink(missing_ok=True)
        return step

    def restore_metrics(self, model):
        """Restore the states of the metrics from the checkpoint."""
        if self.state()["step"]:
            _assign(model.metrics_variables, self.state()["metrics"])


def _as_read(state):
    """Return a state as JSON will give it back, without NumPy's numbers."""
    return json.loads(json.dumps(state, default=float))


def _weights(path):
    return path.with_name(f"{path.name}.weights.h5")


def _sidecar(path):
    return path.with_name(f"{path.name}.json")


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(state):
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _append_lora(path, values):
    """Add the factors of low-rank updates, which Keras saves only merged."""
    if not values:
        return
    with h5py.File(path, "a") as file:
        for number, value in enumerate(values):
            file[f"{LORA}/{number}"] = value


def _load_lora(path, model):
    variables = lora_variables(model)
    if not variables:
        return
    with h5py.File(path) as file:
        for number, variable in enumerate(variables):
            variable.assign(file[f"{LORA}/{number}"][()])


def _random(model):
    """List the states of random generators, which a weight file omits."""
    return [v for v in model.variables if v.path.endswith("generator_state")]


def _values(variables):
    return [keras.ops.convert_to_numpy(v).tolist() for v in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
