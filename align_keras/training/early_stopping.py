"""Decide when to stop a run early, and detect overfitting."""

import itertools
import logging
import math

# Number of evaluations in a row, each worse than the last, that count as
# overfitting.
FALLING = 3

logger = logging.getLogger("align_keras")


class Patience:
    """Counts evaluations in a row that have not found a better model.

    Args:
        patience: int or `None`. The number of such evaluations after which
            the run stops; `None` for never.
        state: dict, as `Checkpoints.state` returns it. A run that resumes
            continues the count.
        sums: callable. Sums numbers over the workers, so that all of them
            stop together. Defaults to a single worker.
    """

    def __init__(self, patience, state, sums=lambda *values: values):
        self.patience = patience
        self.waited = state.get("waited", 0)
        self.stopped = state.get("stopped", False)
        self.sums = sums

    def state(self):
        """Return the state to save in a checkpoint, see `Checkpoints.save`."""
        return {"waited": self.waited, "stopped": self.stopped}

    def count(self, improved, last=False):
        """Count an evaluation.

        Args:
            improved: bool. Whether it found the best model so far.
            last: bool. Whether it followed the last step, so that there is
                nothing left to stop. Defaults to `False`.
        """
        self.waited = 0 if improved else self.waited + 1
        if self.patience is None:
            return
        over = self.waited >= self.patience
        # The metrics of two workers may differ in the last digit, so they
        # vote: one is enough.
        (over,) = self.sums(float(over))
        self.stopped = bool(over) and not last


def _is_noise(high, low, metrics):
    """Return whether recall was no better than chance, or fell by less than
    its standard error."""
    line = next(m for m in reversed(metrics) if "validation_mean_recall" in m)
    if high <= line.get("validation_chance_mean_recall", 0):
        return True
    images = line.get("validation_images")
    return images and high - low < math.sqrt(high * (1 - high) / images)


def describe_overfitting(metrics, falling=FALLING):
    """Describe overfitting: held-out recall falls as the training loss falls.

    Args:
        metrics: list of dicts, the lines of `metrics.jsonl`, each with
            `"step"`, and `"loss"` or `"validation_mean_recall"`.
        falling: int. How many evaluations in a row must each be worse than
            the one before. If recall keeps falling, later evaluations do not
            repeat the message.

    Returns:
        string, a sentence with the numbers, or `None`.
    """
    name = "validation_mean_recall"
    recalls = [(m["step"], m[name]) for m in metrics if name in m]
    losses = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    falls = [two[1] < one[1] for one, two in itertools.pairwise(recalls)]
    if len(falls) < falling or not all(falls[-falling:]):
        return None
    if falls[-falling - 1 : -falling] == [True]:
        return None
    (first, high), (last, low) = recalls[-falling - 1], recalls[-1]
    if _is_noise(high, low, metrics):
        return None
    before = [loss for step, loss in losses if step <= first]
    after = [loss for step, loss in losses if first < step <= last]
    if not before or not after or after[-1] >= before[-1]:
        return None
    return (
        f"The model overfits: from step {first} to {last} the training loss "
        f"fell from {before[-1]:.3f} to {after[-1]:.3f}, and held-out recall "
        f"from {high:.1%} to {low:.1%}. The best model is kept; more data, "
        "fewer steps (`patience` in the recipe) or more weight decay help."
    )
