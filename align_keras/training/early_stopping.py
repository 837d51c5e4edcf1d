"""When to stop before the last step, and when a run has overfitted."""

import itertools
import logging
import math

# Evaluations in a row that are worse than the one before.
FALLING = 3

logger = logging.getLogger("align_keras")


class Patience:
    """Counts evaluations that have not found a better model.

    Args:
        patience: int or `None`. After how many in a row the run ends; `None`
            for never.
        state: dict, as `Checkpoints.state` returns it. A run that is resumed
            continues the count.
        sums: callable. Sums numbers up over the workers, so that all end
            together. Defaults to those of one worker.
    """

    def __init__(self, patience, state, sums=lambda *values: values):
        self.patience = patience
        self.waited = state.get("waited", 0)
        self.stopped = state.get("stopped", False)
        self.sums = sums

    def state(self):
        """What a checkpoint is to keep, see `Checkpoints.save`."""
        return {"waited": self.waited, "stopped": self.stopped}

    def count(self, improved, last=False):
        """Take note of an evaluation.

        Args:
            improved: bool. Whether it has found the best model so far.
            last: bool. Whether it was after the last step, so that there is
                nothing to stop. Defaults to `False`.
        """
        self.waited = 0 if improved else self.waited + 1
        if self.patience is None:
            return
        over = self.waited >= self.patience
        # Evaluations of two workers may differ in the last digit.
        (over,) = self.sums(float(over))
        self.stopped = bool(over) and not last


def _is_noise(high, low, metrics):
    """Whether recall was chance, or fell by less than its standard error."""
    line = next(m for m in reversed(metrics) if "validation_mean_recall" in m)
    if high <= line.get("validation_chance_mean_recall", 0):
        return True
    images = line.get("validation_images")
    return images and high - low < math.sqrt(high * (1 - high) / images)


def describe_overfitting(metrics, falling=FALLING):
    """Say so when recall falls while the training loss falls, too.

    Args:
        metrics: list of dicts, the lines of `metrics.jsonl`, each with
            `"step"`, and `"loss"` or `"validation_mean_recall"`.
        falling: int. How many evaluations in a row must be worse than the
            one before. It is said at this one, not again at the next.

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
