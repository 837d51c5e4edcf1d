"""Loggers for the metrics of a run, besides `metrics.jsonl`."""

import contextlib
import os
import re
from pathlib import Path

from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.io.optional import require

# Stores each logger's identifier of the run, so that a resumed run continues
# it.
RUNS = "trackers.json"


class TensorBoard:
    """Writes TensorBoard's files to `tensorboard/` in the working directory."""

    def __init__(self, workdir, settings):
        import tensorflow as tf

        self._summary = tf.summary
        directory = str(Path(workdir) / "tensorboard")
        self._writer = tf.summary.create_file_writer(directory)

    def write(self, step, metrics):
        with self._writer.as_default():
            for name, value in metrics.items():
                self._summary.scalar(name, value, step=step)
        self._writer.flush()

    def close(self, failed):
        self._writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases.

    Configure it by its own environment variables, such as `WANDB_PROJECT`,
    `WANDB_ENTITY` and `WANDB_MODE`.
    """

    def __init__(self, workdir, settings):
        wandb = require("wandb", extra="wandb")
        known = _known_run(workdir, "wandb")
        self._run = wandb.init(
            id=known,
            resume="allow" if known else None,
            name=Path(workdir).resolve().name,
            dir=str(workdir),
            config=settings,
        )
        # A run that resumes repeats the steps after its last checkpoint, and
        # wandb's own step must not decrease.
        self._run.define_metric("*", step_metric="step")
        _keep_run(workdir, "wandb", self._run.id)

    def write(self, step, metrics):
        self._run.log({"step": step, **metrics})

    def close(self, failed):
        self._run.finish(exit_code=int(failed))


class MLflow:
    """Logs to MLflow.

    Configure it by its own environment variables, such as
    `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`.
    """

    def __init__(self, workdir, settings):
        mlflow = require("mlflow", extra="mlflow")
        self._client = mlflow.MlflowClient()
        known = _known_run(workdir, "mlflow")
        if known is None:
            name = Path(workdir).resolve().name
            run = self._client.create_run(self._experiment(), run_name=name)
            known = run.info.run_id
            for key, value in settings.items():
                self._client.log_param(known, key, value)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known
        _keep_run(workdir, "mlflow", known)

    def _experiment(self):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if not name:
            return os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return self._client.create_experiment(name)
        return found.experiment_id

    def write(self, step, metrics):
        for name, value in metrics.items():
            # MLflow refuses some characters, such as the @ of recall@1.
            name = re.sub(r"[^\w\-./ ]", "_at_", name)
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, failed):
        status = "FAILED" if failed else "FINISHED"
        self._client.set_terminated(self._id, status)


TRACKERS = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_trackers(names):
    """Refuse loggers that do not exist or are not installed.

    Args:
        names: sequence of strings, names in `TRACKERS`.

    Raises:
        ValueError: There is no such logger.
        ImportError: Its package is not installed.
    """
    if isinstance(names, str) or set(names) - set(TRACKERS):
        raise ValueError(
            f"`log` must be a list of names among {', '.join(TRACKERS)}. "
            f"Received: {names!r}"
        )
    for name in {"wandb", "mlflow"}.intersection(names):
        require(name, extra=name)


@contextlib.contextmanager
def opened_trackers(names, workdir, settings):
    """Open the loggers of a run, continue known runs, and close at the end.

    Args:
        names: sequence of strings, names in `TRACKERS`.
        workdir: string or `pathlib.Path`. The directory of the run.
        settings: dict. The settings of the run, to log.

    Yields:
        A list of loggers with the method `write(step, metrics)`.
    """
    with contextlib.ExitStack() as stack:
        trackers = []
        for name in dict.fromkeys(names):
            tracker = TRACKERS[name](workdir, settings)
            stack.push(_closing(tracker))
            trackers.append(tracker)
        yield trackers


def _closing(tracker):
    def close(kind, error, traceback):
        # A run that SIGTERM has stopped did not fail.
        tracker.close(failed=kind is not None and kind is not SystemExit)

    return close


def forget_runs(workdir):
    """Let the loggers start new runs, as a run without a checkpoint does.

    Args:
        workdir: `pathlib.Path`. The directory of the run.
    """
    (workdir / RUNS).unlink(missing_ok=True)


def _known_run(workdir, tracker):
    return _known_runs(workdir).get(tracker)


def _known_runs(workdir):
    path = Path(workdir) / RUNS
    if not path.is_file():
        return {}
    return read_object(
        path,
        {f"{tracker}?": str for tracker in TRACKERS},
        "list of the runs of trackers",
        "Remove it to start a new run in the trackers.",
    )


def _keep_run(workdir, tracker, identity):
    known = _known_runs(workdir)
    write_json(Path(workdir) / RUNS, {**known, tracker: identity})
