import keras
from keras import ops


@keras.saving.register_keras_serializable(package="align_keras")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises linearly to a peak and falls linearly to zero.

    The rate is `peak * step / warmup_steps` during the warm-up and
    `peak * (total_steps - step) / (total_steps - warmup_steps)` after it. It
    stays at zero beyond `total_steps`.

    Args:
        peak_learning_rate: float. The highest rate, reached at the end of the
            warm-up.
        warmup_steps: int. Number of steps of the warm-up. May be 0.
        total_steps: int. Number of steps after which the rate is zero.
        first_step: int. Number of steps that another optimizer has already
            taken. The rate then rises from zero again, over `warmup_steps`
            steps, until it meets the schedule. Defaults to `0`.
        name: string. The name of the schedule.

    Example:

    ```python
    # The schedule of the paper.
    schedule = WarmupLinearDecay(1e-3, 10_000, 1_200_000)
    schedule(5_000)  # 5e-4
    ```

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5.
    """

    def __init__(
        self,
        peak_learning_rate,
        warmup_steps,
        total_steps,
        first_step=0,
        name="warmup_linear_decay",
    ):
        super().__init__()
        if warmup_steps < 0 or total_steps <= warmup_steps:
            raise ValueError(
                "`warmup_steps` must be at least 0 and smaller than "
                "`total_steps`. Received: "
                f"warmup_steps={warmup_steps}, total_steps={total_steps}"
            )
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.first_step = first_step
        self.name = name

    def __call__(self, step):
        own = ops.cast(step, "float32")
        step = own + self.first_step
        rising = step / max(self.warmup_steps, 1)
        falling = (self.total_steps - step) / (
            self.total_steps - self.warmup_steps
        )
        factor = ops.where(step < self.warmup_steps, rising, falling)
        if self.first_step and self.warmup_steps:
            factor = factor * ops.minimum(own / self.warmup_steps, 1.0)
        return self.peak_learning_rate * ops.maximum(factor, 0.0)

    def get_config(self):
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "first_step": self.first_step,
            "name": self.name,
        }
