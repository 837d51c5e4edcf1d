import functools

import keras
from keras import ops

from align_keras import backend
from align_keras.optimizers.exclusions import DEFAULT_EXCLUSIONS
from align_keras.optimizers.exclusions import is_excluded
from align_keras.optimizers.rate_multipliers import RateMultipliers


@keras.saving.register_keras_serializable(package="align_keras")
class Lamb(
    RateMultipliers, backend.ReplicaClipping, keras.optimizers.Optimizer
):
    """Layer-wise adaptive moments, with decay inside the trust ratio.

    The step of a variable `w` is `u = m / (sqrt(v) + epsilon) +
    weight_decay * w` with Adam's bias-corrected moments, scaled by the trust
    ratio `norm(w) / norm(u)` (1 if either norm is zero). This is the
    published algorithm. `keras.optimizers.Lamb` differs: it decays weights
    outside the trust ratio, as AdamW does, and adapts every variable.

    Regular expressions select the variables to exclude. They are searched for
    in the variable's path, such as `"align_dual_encoder/stem_bn/gamma"`.

    Args:
        learning_rate: float or `keras.optimizers.schedules`
            `.LearningRateSchedule`. Defaults to `1e-3`.
        beta_1: float. Decay rate of the first moment. Defaults to `0.9`.
        beta_2: float. Decay rate of the second moment. Defaults to `0.999`.
        epsilon: float. Added to the root of the second moment. Defaults to
            `1e-6`.
        weight_decay: float. Factor of the weight in the step; the paper uses
            `1e-5`. Defaults to `0.0`.
        exclude_from_weight_decay: list of regular expressions. Variables
            without decay. Defaults to biases, normalisation parameters, the
            temperature and the factors of LoRA. Pass `[]` to decay
            everything.
        exclude_from_layer_adaptation: list of regular expressions. Variables
            whose trust ratio is always 1. Defaults to
            `exclude_from_weight_decay`, as in the authors' code.
        name: string. The name of the optimizer.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`, such as
            `global_clipnorm` and `use_ema`; and `rate_multipliers`, see
            `RateMultipliers`.

    Example:

    ```python
    optimizer = Lamb(
        WarmupLinearDecay(1e-3, 10_000, 1_200_000), weight_decay=1e-5
    )
    model.compile(optimizer=optimizer, loss=ContrastiveLoss())
    ```

    Reference:
        - [You et al., 2020](https://arxiv.org/abs/1904.00962), algorithm 2.
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        weight_decay=0.0,
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
        name="lamb",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if exclude_from_weight_decay is None:
            exclude_from_weight_decay = DEFAULT_EXCLUSIONS
        if exclude_from_layer_adaptation is None:
            exclude_from_layer_adaptation = exclude_from_weight_decay
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.decay_rate = weight_decay
        self.decay_exclusions = list(exclude_from_weight_decay)
        self.adaptation_exclusions = list(exclude_from_layer_adaptation)

    def build(self, variables):
        """Create the moments and decide which variables are excluded."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )
        self._decayed = [
            not is_excluded(self.decay_exclusions, v) for v in variables
        ]
        self._adapted = [
            not is_excluded(self.adaptation_exclusions, v) for v in variables
        ]

    def _backend_update_step(self, gradients, variables, learning_rate):
        # Compute these once, not for each of hundreds of variables.
        step = ops.cast(self.iterations + 1, "float32")
        corrections = (
            1.0 / (1.0 - ops.power(beta, step))
            for beta in (self.beta_1, self.beta_2)
        )
        rates = (learning_rate, *corrections)
        super()._backend_update_step(gradients, variables, rates)

    def update_step(self, gradient, variable, rates):
        """Update one variable from its gradient.

        Args:
            gradient: tensor like the variable.
            variable: The variable.
            rates: tuple of scalars. The learning rate and the factors that
                correct the bias of the two moments.
        """
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        gradient = ops.cast(backend.densify(gradient), variable.dtype)
        rates = (ops.cast(rate, variable.dtype) for rate in rates)
        rate, unbias_1, unbias_2 = rates
        rate = self.multiplied(rate, variable)
        decay_rate = self.decay_rate if self._decayed[index] else 0.0
        formula = _change(
            self.beta_1,
            self.beta_2,
            self.epsilon,
            decay_rate,
            self._adapted[index],
        )
        mean, square, change = formula(
            gradient,
            ops.convert_to_tensor(variable),
            ops.convert_to_tensor(momentum),
            ops.convert_to_tensor(velocity),
            rate,
            unbias_1,
            unbias_2,
        )
        self.assign(momentum, mean)
        self.assign(velocity, square)
        self.assign_sub(variable, change)

    def exclusions(self):
        """List the paths of excluded variables, once the optimizer is built.

        Returns:
            A dict with the keys `"weight_decay"` and `"layer_adaptation"`,
            each a list of variable paths that are exempt from it.
        """
        pairs = (
            ("weight_decay", self._decayed),
            ("layer_adaptation", self._adapted),
        )
        return {
            name: [
                v.path
                for v, applies in zip(
                    self._trainable_variables, flags, strict=True
                )
                if not applies
            ]
            for name, flags in pairs
        }

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "beta_1": self.beta_1,
                "beta_2": self.beta_2,
                "epsilon": self.epsilon,
                "weight_decay": self.decay_rate,
                "exclude_from_weight_decay": self.decay_exclusions,
                "exclude_from_layer_adaptation": self.adaptation_exclusions,
            }
        )
        return config


# Keyed by the numbers: one that is changed counts in the next trace of a step.
@functools.cache
def _change(beta_1, beta_2, epsilon, decay_rate, adapted):
    """Return a function to the new moments and what to subtract."""

    def change(gradient, weight, momentum, velocity, rate, unbias_1, unbias_2):
        mean = beta_1 * momentum + (1 - beta_1) * gradient
        square = beta_2 * velocity + (1 - beta_2) * ops.square(gradient)
        change = unbias_1 * mean / (ops.sqrt(unbias_2 * square) + epsilon)
        if decay_rate:
            change = change + decay_rate * weight
        if adapted:
            change = change * _trust_ratio(weight, change)
        return mean, square, rate * change

    return backend.traced_once(change)


def _trust_ratio(weight, change):
    """Divide the norm of the weight by that of the change; 1 if one is 0."""
    squares = map(backend.sum_of_squares, (weight, change))
    ratio = ops.sqrt(ops.divide_no_nan(*squares))
    return ops.where(ratio > 0, ratio, 1.0)
