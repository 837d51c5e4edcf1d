import contextlib
import json
import logging
import math
import time
from pathlib import Path

import keras

from align_keras.io.atomic import atomic_file
from align_keras.io.json_files import parse_json
from align_keras.io.memory import peak_memory
from align_keras.io.messages import end_progress
from align_keras.io.messages import print_progress
from align_keras.training.early_stopping import Patience
from align_keras.training.early_stopping import describe_overfitting
from align_keras.training.ema import averaged_weights

logger = logging.getLogger("align_keras")

# Roughly how many seconds several workers take to notice that one must stop.
PATIENCE = 5.0


class TrainingLog(keras.callbacks.Callback):
    """Reports loss, recall, temperature, learning rate and speed.

    The metrics are means over the steps since the last report. They go to the
    terminal, to `metrics.jsonl` and to the loggers. For Keras, the steps from
    `first_step` on are a single epoch.

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        recipe: `Recipe`. Each of its checkpoints also gets a report.
        checkpoints: `Checkpoints`. Where the run resumes from.
        guard: `LossGuard`. Checks the loss of every step.
        every: int. Number of steps between reports. Defaults to `20`.
        verbose: bool. Whether to print to the terminal. Defaults to `True`.
        writes: bool. Whether this process writes the logs. Defaults to
            `True`.
        last_step: int. The step at which this part of the run ends, with a
            report and a checkpoint. Defaults to `None`: the `steps` of the
            recipe.
        trackers: list of loggers, see `opened_trackers`. Defaults to none.
    """

    def __init__(
        self,
        workdir,
        recipe,
        checkpoints,
        guard,
        every=20,
        verbose=True,
        writes=True,
        last_step=None,
        trackers=(),
    ):
        super().__init__()
        self.trackers = trackers
        self.writes = writes
        self.workdir = Path(workdir)
        self.recipe = recipe
        self.checkpoints = checkpoints
        self.guard = guard
        self.every = every
        self.verbose = verbose
        self._foretold = False
        self.last_step = recipe.steps if last_step is None else last_step
        state = checkpoints.state()
        self.step = self.first_step = self._timed_step = state["step"]
        self.reported_step = state.get("reported_step", self.step)
        # Metrics from before the first step, added to the first report.
        self.first_metrics = {}

    def on_train_begin(self, logs=None):
        if not self.writes:
            return
        self._forget_later_steps()
        if self.verbose and self.step < self.last_step:
            logger.info("Compiling the first step.")

    def _forget_later_steps(self):
        """Drop the lines that a run logged after its last checkpoint."""
        pending = self.checkpoints.state().get("pending", False)
        lines = []
        for line, found in read_metrics(self.workdir):
            again = pending and any(
                name.startswith("validation_") for name in found
            )
            if found["step"] < self.step + (not again):
                lines.append(f"{line}\n")
        with atomic_file(self.workdir / "metrics.jsonl") as temporary:
            temporary.write_text("".join(lines))

    def on_epoch_begin(self, epoch, logs=None):
        # Keras has just reset the metrics.
        self.checkpoints.restore_metrics(self.model)
        self.start_clock()

    def start_clock(self):
        """Start the timer, so that evaluation and saving do not count."""
        self._timed_step = self.step
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        before, self.step = self.step, self.first_step + batch + 1
        self.guard.watch(range(before + 1, self.step + 1), logs["loss"])
        # A report of the first step shows that the model compiled and learns.
        if (
            not before
            or self.is_due(before, self.every)
            or self.is_due(before, self.recipe.checkpoint_every)
        ):
            self.report(logs)
        elif before == self.first_step:
            self.start_clock()  # The first step after resuming compiles.

    def is_due(self, before, every):
        """Return whether the run just passed a multiple of `every`, or ended.

        Args:
            before: int. The step before the ones that were just taken.
            every: int.
        """
        passed = self.step // every > before // every
        return passed or self.step >= self.last_step

    def report(self, logs):
        """Write the means since the last report, and reset them."""
        self.guard.settle()
        model = self.model  # On JAX, this brings the state up to date.
        seconds = time.perf_counter() - self._start
        pairs = (self.step - self._timed_step) * self.recipe.batch_size
        metrics = {name: float(value) for name, value in logs.items()}
        metrics["temperature"] = model.temperature
        metrics["learning_rate"] = float(model.optimizer.learning_rate)
        metrics["images_per_second"] = pairs / seconds
        self.write({**metrics, **self.first_metrics})
        self.first_metrics = {}
        if self.verbose:
            self._print(metrics)
        model.reset_metrics()
        self.reported_step = self.step
        self.start_clock()

    def write(self, metrics):
        """Append metrics of the current step to the logs."""
        if not self.writes:
            return
        path = self.workdir / "metrics.jsonl"
        line = json.dumps({"step": self.step, **metrics}, default=float)
        try:
            with path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise self.checkpoints.explain(path, error) from error
        for tracker in self.trackers:
            tracker.write(self.step, metrics)

    def _print(self, metrics):
        steps = self.recipe.steps
        done = int(20 * self.step / steps)
        line = (
            f"step {self.step:>6}/{steps} [{'#' * done:<20}] "
            f"loss {metrics['loss']:.3f}  "
            f"recall@1 {metrics['image_to_text_recall_at_1']:.0%}"
            f"/{metrics['text_to_image_recall_at_1']:.0%}  "
            f"temperature {metrics['temperature']:.4f}"
        )
        if self._timed_step > self.first_step:
            # Otherwise the time includes compiling.
            speed = metrics["images_per_second"]
            left = (steps - self.step) * self.recipe.batch_size / speed
            line += f"  {speed:.0f} images/s  {clock(left)} left"
            self._forecast(left)
        print_progress(line, last=self.step >= self.last_step)

    def _forecast(self, seconds):
        """Log once, as soon as the speed is known, when the run will end."""
        if self._foretold or self.step >= self.recipe.steps:
            return
        self._foretold = True
        end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
        logger.info(
            "The run will end in %s (%s), evaluations not counted; this "
            "process has taken up to %.1f GB of memory.",
            clock(seconds),
            end,
            peak_memory() / 1e9,
        )

    def on_train_end(self, logs=None):
        end_progress()


def clock(seconds):
    """Format seconds as minutes or hours, such as `"2:05"`, `"1:02:05"`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"


def read_metrics(workdir):
    """Read `metrics.jsonl`, skipping lines that are incomplete.

    Returns:
        list of pairs: the line, and the dict in it.
    """
    path = Path(workdir, "metrics.jsonl")
    pairs = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            metrics = parse_json(line)
            if isinstance(metrics, dict):
                pairs.append((line, metrics))
    return pairs


class SaveBest(keras.callbacks.Callback):
    """Checkpoints the run and keeps the best model as a preset directory.

    Every `checkpoint_every` steps, it saves the run, then evaluates the model
    if there is validation data. It keeps the model with the highest mean
    recall or, without evaluation, the newest one. If the recipe has `ema`,
    the model that is kept has the averaged weights. A run that stopped
    between saving and evaluating resumes with the evaluation. After
    `patience` evaluations in a row without a better model, the run ends.

    Args:
        checkpoints: `Checkpoints`. Where the run is saved.
        directory: string or `pathlib.Path`. Preset directory of the best
            model.
        log: `TrainingLog`. Provides the step, and logs the metrics.
        preemption: `Preemption`. Tells when to save and exit.
        workers: `Workers`. All of them must agree at the same steps whether
            to exit.
        evaluate: callable. Takes the model and returns a dict with
            `"mean_recall"`. `None` for no evaluation.
        diagnose: callable. Takes the model and returns a dict of numbers for
            the log. `None` for no diagnostics.
    """

    def __init__(
        self,
        checkpoints,
        directory,
        log,
        preemption,
        workers,
        evaluate=None,
        diagnose=None,
    ):
        super().__init__()
        self.checkpoints = checkpoints
        self.directory = directory
        self.log = log
        self.evaluate = evaluate
        self.preemption = preemption
        self.workers = workers
        self.diagnose = diagnose
        self.best = checkpoints.state().get("best")
        self.patience = Patience(
            log.recipe.patience, checkpoints.state(), workers.sums
        )
        self._last_step = log.step
        self._next_question = log.step + 1
        self._asked = log.step
        self._asked_at = time.perf_counter()

    def on_train_begin(self, logs=None):
        if self.diagnose and not self.log.step:
            self.log.first_metrics = self.diagnose.of_fresh(self.model)
        if self.checkpoints.state().get("pending"):
            self._choose()

    def on_train_batch_end(self, batch, logs=None):
        self.checkpoints.check()
        before, self._last_step = self._last_step, self.log.step
        self.preemption.unsaved = True
        # Another callback may have ended the run.
        stopped = self.model.stop_training
        if stopped or self.log.is_due(before, self.log.recipe.checkpoint_every):
            self._save(pending=True)
            if self._must_leave():
                self.preemption.leave()
            self._choose()
            self.log.start_clock()
            self.model.stop_training = stopped or self.patience.stopped
        elif self.workers.count == 1 or self.log.step >= self._next_question:
            if self._must_leave():
                self._save(pending=False)
                self.preemption.leave()

    def _must_leave(self):
        asked = self.preemption.asked
        if self.workers.count == 1:
            return asked
        # Clocks differ between workers, so they sum their times: all of them
        # must ask again at the same step.
        now = time.perf_counter()
        seconds = (now - self._asked_at) / max(1, self.log.step - self._asked)
        asked, seconds = self.workers.sums(float(asked), seconds)
        steps = int(PATIENCE * self.workers.count / seconds)
        self._next_question = self.log.step + min(max(1, steps), self.log.every)
        self._asked, self._asked_at = self.log.step, now
        return asked > 0

    def _save(self, pending):
        # On JAX, `self.model` brings the state up to date.
        self.checkpoints.save(
            self.model,
            self.log.step,
            inspect=self.log.guard.inspector(),
            best=self.best,
            reported_step=self.log.reported_step,
            pending=pending,
            **self.patience.state(),
        )
        self.preemption.unsaved = False

    def _choose(self):
        """Evaluate the model, and keep it if it is the best so far."""
        with averaged_weights(self.model):
            self._choose_weights()
        self.checkpoints.update(
            best=self.best, pending=False, **self.patience.state()
        )

    def _choose_weights(self):
        step = self.log.step
        metrics = self.evaluate(self.model) if self.evaluate else {}
        found = self.diagnose(self.model) if self.diagnose else {}
        if metrics or found:
            found = {**metrics, **found}
            self.log.write({f"validation_{k}": v for k, v in found.items()})
        if metrics:
            lines = [line for _, line in read_metrics(self.log.workdir)]
            overfitting = describe_overfitting(lines)
            if overfitting:
                logger.warning("%s", overfitting)
        score = metrics.get("mean_recall")
        best = self.best and self.best["score"]
        # A comparison with NaN is false: it would stay the best for ever.
        first = best is None or math.isnan(best)
        improved = score is None or first or score > best
        self.patience.count(improved, step >= self.log.recipe.steps)
        if improved:
            finish = self.model.begin_saving(self.directory)

            def write():
                try:
                    finish()
                except (OSError, RuntimeError) as error:
                    raise self.checkpoints.explain(
                        self.directory, error
                    ) from error

            # Written after the checkpoint, and not at all if that fails.
            self.checkpoints.after(write)
            self.best = {"step": step, "score": score, "metrics": metrics}
