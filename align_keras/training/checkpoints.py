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

# Bytes that a file spends on a variable beside its values, rounded up.
HDF5_OVERHEAD = 4096
# Group of a weight file that Keras does not know of.
LORA = "lora"

logger = logging.getLogger("align_keras")


class Checkpoints:
    """The checkpoints of a working directory.

    A checkpoint is a file with the weights and the optimizer's state, and a
    JSON file beside it with all else: the states of random generators and
    metrics, and what the caller adds. It is written last and holds checksums
    of both, so that what is torn or damaged is found out, and the checkpoint
    before is taken instead.

    Saving takes as long as copying the state to the memory of the host. A
    thread of its own writes it, one checkpoint at a time; a context waits for
    the last one.

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        state: dict. What `state` returns until something is saved. Defaults
            to `None`: what the newest whole checkpoint says.
        keep: int. Number of checkpoints to keep. Defaults to `2`.
        writes: bool. Whether this process writes them. One of several that
            does not takes part in reading the model, and keeps nothing.
            Defaults to `True`.
    """

    def __init__(self, workdir, state=None, keep=2, writes=True):
        self.directory = local_path(workdir) / "checkpoints"
        self.keep = keep
        self.writes = writes
        self._state = state
        # A file that another process sent, to be read once.
        self._received = None
        self._background = Background()
        # Raises the error of what was to be written, without waiting for it.
        self.check = self._background.check
        # Waits until all is written, or for some seconds.
        self.wait = self._background.wait
        self.finish = self._background.finish

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.wait()
        else:
            # What ends the run is told, not what followed from it.
            with contextlib.suppress(Exception):
                self.wait()

    def state(self):
        """Return what the newest whole checkpoint says.

        Returns:
            A dict with `"step"` (0 for a fresh run) and whatever else was
            passed to `save`.

        Raises:
            ValueError: There are checkpoints, but none of them is whole.
        """
        if self._state is None:
            self._state = self._newest()
        return self._state

    def share(self, workers):
        """Let all workers of a run resume from what the first one has.

        One whose disk does not show the checkpoint gets it sent.

        Args:
            workers: `Workers`.

        Raises:
            ValueError: No checkpoint is whole. All workers raise it.
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
                logger.warning("Passed over a checkpoint: %s", error)
            else:
                return state
        # The first checkpoint of a run may have been interrupted.
        if reason is None or not list(self.directory.glob("step-*.json")):
            return {"step": 0}
        raise ValueError(
            f"No checkpoint in `{self.directory}` is whole. {reason} Restore "
            "them from a copy, or start anew in another working directory."
        )

    def _all(self):
        """Paths of checkpoints without suffix, newest first."""
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
            raise ValueError(f"`{weights}` is damaged or not whole.")
        return state

    def save(self, model, step, inspect=None, **state):
        """Begin to save the model and its optimizer after `step` steps.

        The model may be trained on as soon as this returns. What is being
        saved is written first; until then, `state` returns what was before.

        Args:
            model: `keras.Model`, compiled.
            step: int.
            inspect: callable. Takes the `Snapshot` before it is written, and
                raises where it is not worth it. Defaults to `None`.
            **state: What `state` shall return with it; must fit into JSON.

        Raises:
            OSError: There is no room, or what was saved before could not be
                written. Later on, `check` and `wait` raise why this one
                could not. The checkpoint before is kept.
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
        for old in self._all()[self.keep :]:
            # The other way round, it would seem damaged.
            _weights(old).unlink(missing_ok=True)
            _sidecar(old).unlink(missing_ok=True)

    def after(self, job):
        """Let something else be written after what is being saved.

        Args:
            job: callable. It is not called where the checkpoint fails, nor
                by a process that does not write.
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
            path: `pathlib.Path`. What was to be written.
            error: Exception. Why it was not.

        Returns:
            An `OSError`.
        """
        # HDF5 fails again when it closes the file; its first error tells.
        while error.__context__ is not None:
            error = error.__context__
        number = getattr(error, "errno", None)
        return OSError(
            f"`{path}` could not be written: "
            f"{os.strerror(number) if number else error}. The checkpoint of "
            f"step {self.state()['step']} is kept: make room, and run the "
            "same command again to resume from there."
        )

    def update(self, **state):
        """Change what the newest checkpoint says, and leave its weights.

        Like `save`, it does not wait, and comes after what was begun before.
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
        """Load the newest whole checkpoint into a compiled model.

        The states of metrics are left to `restore_metrics`, for `fit` begins
        with fresh ones.

        Args:
            model: `keras.Model`, compiled.
            fresh_optimizer: bool. Whether to leave the optimizer as it is,
                because it trains other variables. Defaults to `False`.

        Returns:
            int. The number of steps that it has behind it.
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
        """Give the metrics the states that they had at the checkpoint."""
        if self.state()["step"]:
            _assign(model.metrics_variables, self.state()["metrics"])


def _as_read(state):
    """Return a state as it will be read: with plain numbers for NumPy's."""
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
    """Add the factors of low-rank updates, which Keras only saves merged."""
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
    """The states of the random generators, which a weight file leaves out."""
    return [v for v in model.variables if v.path.endswith("generator_state")]


def _values(variables):
    return [keras.ops.convert_to_numpy(v).tolist() for v in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
