import math

from keras import ops


class RateMultipliers:
    """Gives each variable its own learning rate.

    This is a mixin of the optimizers in this package. The rate of variable
    `i` is the learning rate times `rate_multipliers[i]`, in its step and in
    its weight decay, as if each variable had a separate optimizer.

    Args:
        *args: Arguments of the optimizer.
        rate_multipliers: list of floats, one for each variable in the order
            in which `build` receives them. Defaults to `None`: all are 1.
        **kwargs: Arguments of the optimizer.
    """

    def __init__(self, *args, rate_multipliers=None, **kwargs):
        super().__init__(*args, **kwargs)
        if rate_multipliers is not None:
            rate_multipliers = [float(value) for value in rate_multipliers]
            for value in rate_multipliers:
                if not 0 <= value < math.inf:
                    raise ValueError(
                        "`rate_multipliers` must be finite and at least 0. "
                        f"Received: {value}"
                    )
        self.rate_multipliers = rate_multipliers

    def build(self, variables):
        """Create the state and check that each variable has its multiplier."""
        factors = self.rate_multipliers
        if factors is not None and len(factors) != len(variables):
            raise ValueError(
                "`rate_multipliers` must hold one number for each variable. "
                f"Received: {len(factors)} numbers, {len(variables)} variables"
            )
        super().build(variables)

    def multiplied(self, rate, variable):
        """Return the learning rate of a variable."""
        if self.rate_multipliers is None:
            return rate
        factor = self.rate_multipliers[self._get_variable_index(variable)]
        return rate if factor == 1.0 else rate * factor

    def update_step(self, gradient, variable, learning_rate):
        """Decay and update one variable at its own rate."""
        rate = self.multiplied(learning_rate, variable)
        if self.rate_multipliers is not None and self.weight_decay is not None:
            if self._use_weight_decay(variable):
                weight = ops.convert_to_tensor(variable)
                decay = ops.cast(self.weight_decay, weight.dtype)
                decay = weight * decay * ops.cast(rate, weight.dtype)
                self.assign_sub(variable, decay)
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables):
        # Keras decays all variables at one rate.
        if self.rate_multipliers is None:
            super()._apply_weight_decay(variables)

    def get_config(self):
        config = super().get_config()
        config["rate_multipliers"] = self.rate_multipliers
        return config
