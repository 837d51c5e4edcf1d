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
from align_keras.io.mirrors import publish
from align_keras.io.paths import local_path
from align_keras.models.lora import lora_variables
from align_keras.models.lora import without_lora

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

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        state: dict. What `state` returns until something is saved. Defaults
            to `None`: what the newest whole checkpoint says.
        keep: int. Number of checkpoints to keep. Defaults to `2`.
    """

    def __init__(self, workdir, state=None, keep=2):
        self.directory = local_path(workdir) / "checkpoints"
        self.keep = keep
        self._state = state

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

    def agree(self, worker, workers, sums):
        """Let all workers of a run go on from the newest step that all have.

        Each may have checkpoints on a disk of its own, and one that was
        killed while it saved has one less than the others.

        Args:
            worker: int. The number of this worker.
            workers: int. How many there are.
            sums: callable, see `sum_over_workers`; `None` for one worker.

        Raises:
            ValueError: There is no such step. All workers raise it.
        """
        if sums is None:
            return
        own = self.state()["step"]
        steps = sums(*(own * (worker == n) for n in range(workers)))
        first = int(min(steps))
        lacking = False
        if own != first and first:
            try:
                self._state = self._read(self._path(first))
            except ValueError:
                lacking = True
        (count,) = sums(float(lacking))
        if count or (max(steps) and not first):
            found = ", ".join(
                f"worker {number}: step {step:.0f}"
                for number, step in enumerate(steps)
            )
            raise ValueError(
                "The workers have no checkpoint in common to resume from "
                f"({found}; 0 is none). Copy `{self.directory}` of the worker "
                "with the newest to the others, or put the working directory "
                "on a disk that all of them share."
            )
        if own != first:
            logger.warning(
                "Going back from step %d to %d, the newest that all workers "
                "have.",
                own,
                first,
            )

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

    def save(self, model, step, **state):
        """Save the model and its optimizer after `step` steps.

        Args:
            model: `keras.Model`, compiled.
            step: int.
            **state: What `state` shall return with it; must fit into JSON.

        Raises:
            OSError: It could not be written. The checkpoint before is kept.
        """
        path = self._path(step)
        try:
            self._require_room(model)
            # Keras chooses the format by the suffix.
            with atomic_file(_weights(path), ".weights.h5") as temporary:
                with without_lora(model):
                    model.save_weights(temporary, overwrite=True)
                _append_lora(temporary, model)
                digest = _digest(temporary)
            state = {
                "step": step,
                "weights_sha256": digest,
                "random": _values(_random(model)),
                "metrics": _values(model.metrics_variables),
                **state,
            }
            self._write(path, state)
        except (OSError, RuntimeError) as error:
            raise self.explain(path, error) from error
        for old in self._all()[self.keep :]:
            # The other way round, it would seem damaged.
            _weights(old).unlink(missing_ok=True)
            _sidecar(old).unlink(missing_ok=True)

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
        """Change what the newest checkpoint says, and leave its weights."""
        path = self._path(self.state()["step"])
        self._write(path, {**self.state(), **state})

    def _write(self, path, state):
        # As it will be read: numbers of NumPy become plain ones.
        state = json.loads(json.dumps(state, default=float))
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
        return step

    def restore_metrics(self, model):
        """Give the metrics the states that they had at the checkpoint."""
        if self.state()["step"]:
            _assign(model.metrics_variables, self.state()["metrics"])


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


def _append_lora(path, model):
    """Add the factors of low-rank updates, which Keras only saves merged."""
    variables = lora_variables(model)
    if not variables:
        return
    with h5py.File(path, "a") as file:
        for number, variable in enumerate(variables):
            value = keras.ops.convert_to_numpy(variable)
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
