import json
import sys
import time
from pathlib import Path

import keras

from align_keras.files import atomic_file


class TrainingLog(keras.callbacks.Callback):
    """Reports loss, recall, temperature, learning rate and speed.

    The figures are means over the steps since the last report. They go to the
    terminal, to `metrics.jsonl`, and to TensorBoard.

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        batch_size: int. Number of pairs of a step, over all replicas.
        steps: int. Number of steps of the run.
        first_step: int. Number of steps done before.
        every: int. Number of steps between reports. Defaults to `20`.
        verbose: bool. Whether to print to the terminal. Defaults to `True`.
    """

    def __init__(
        self, workdir, batch_size, steps, first_step=0, every=20, verbose=True
    ):
        super().__init__()
        self.workdir = Path(workdir)
        self.batch_size = batch_size
        self.steps = steps
        self.step = first_step
        self.every = every
        self.verbose = verbose
        self._reported_step = first_step

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._forget_later_steps()
        self._tf = tf
        self._writer = tf.summary.create_file_writer(
            str(self.workdir / "tensorboard")
        )

    def _forget_later_steps(self):
        """Drop what an interrupted run did after its last checkpoint."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        with atomic_file(path) as temporary:
            temporary.write_text(
                "".join(
                    f"{line}\n"
                    for line in lines
                    if json.loads(line)["step"] <= self.step
                )
            )

    def on_epoch_begin(self, epoch, logs=None):
        # Evaluation and saving between epochs do not count as training.
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step += self.model.steps_per_execution
        # The first step tells that the network is compiled and learns.
        due = self.step // self.every > self._reported_step // self.every
        if due or not self._reported_step:
            self.report(logs)

    def on_epoch_end(self, epoch, logs=None):
        # Keras starts its means anew with the next epoch.
        if self.step > self._reported_step:
            self.report(logs)

    def report(self, logs):
        """Write the means since the last report and start anew."""
        model = self.model  # On JAX, this brings the state up to date.
        seconds = time.perf_counter() - self._start
        pairs = (self.step - self._reported_step) * self.batch_size
        metrics = {name: float(value) for name, value in logs.items()}
        metrics["temperature"] = model.temperature
        metrics["learning_rate"] = float(model.optimizer.learning_rate)
        metrics["images_per_second"] = pairs / seconds
        self.write(metrics)
        if self.verbose:
            self._print(metrics)
        model.reset_metrics()
        self._reported_step = self.step
        self._start = time.perf_counter()

    def write(self, metrics):
        """Append figures of the current step to the logs."""
        with (self.workdir / "metrics.jsonl").open("a") as file:
            line = json.dumps({"step": self.step, **metrics}, default=float)
            file.write(line + "\n")
        with self._writer.as_default():
            for name, value in metrics.items():
                self._tf.summary.scalar(name, value, step=self.step)
        self._writer.flush()

    def _print(self, metrics):
        left = (self.steps - self.step) * self.batch_size
        remaining = left / metrics["images_per_second"]
        done = int(20 * self.step / self.steps)
        line = (
            f"step {self.step:>6}/{self.steps} [{'#' * done:<20}] "
            f"loss {metrics['loss']:.3f}  "
            f"recall@1 {metrics['image_to_text_recall_at_1']:.0%}"
            f"/{metrics['text_to_image_recall_at_1']:.0%}  "
            f"temperature {metrics['temperature']:.4f}  "
            f"{metrics['images_per_second']:.0f} images/s  "
            f"{int(remaining) // 60}:{int(remaining) % 60:02d} left"
        )
        if sys.stdout.isatty():
            end = "\n" if self.step == self.steps else ""
            print(f"\r{line}", end=end, flush=True)
        else:
            print(line, flush=True)

    def on_train_end(self, logs=None):
        self._writer.close()


class SaveBest(keras.callbacks.Callback):
    """Checkpoints the run and keeps the best model as a preset directory.

    At the end of each epoch, which is a span of `checkpoint_every` steps, the
    model is evaluated where there is something to evaluate it on. The model
    with the highest mean recall is kept; without evaluation, the newest.

    Args:
        checkpoints: `Checkpoints`. Where the run is saved.
        directory: string or `pathlib.Path`. Preset directory of the best
            model.
        log: `TrainingLog`. Knows the step and takes the figures.
        evaluate: callable. Takes the model and returns a dict with
            `"mean_recall"`. `None` for no evaluation.
    """

    def __init__(self, checkpoints, directory, log, evaluate=None):
        super().__init__()
        self.checkpoints = checkpoints
        self.directory = directory
        self.log = log
        self.evaluate = evaluate
        self.best = checkpoints.state().get("best")

    def on_epoch_end(self, epoch, logs=None):
        model, step = self.model, self.log.step
        metrics = self.evaluate(model) if self.evaluate else {}
        if metrics:
            self.log.write({f"validation_{k}": v for k, v in metrics.items()})
        score = metrics.get("mean_recall")
        best = self.best and self.best["score"]
        if score is None or best is None or score > best:
            model.save_to_preset(self.directory)
            self.best = {"step": step, "score": score, "metrics": metrics}
        self.checkpoints.save(model, step, best=self.best)


class StopAtStep(keras.callbacks.Callback):
    """Ends training after a step within an epoch.

    Args:
        log: `TrainingLog`. Counts the steps.
        steps: int. The last step.
    """

    def __init__(self, log, steps):
        super().__init__()
        self.log = log
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        if self.log.step >= self.steps:
            self.model.stop_training = True
