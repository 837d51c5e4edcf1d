"""Initialise random weights without compiling a program for each shape.

JAX compiles a program for every shape of random numbers. Each takes half a
second, and a network has a hundred shapes. On JAX, NumPy draws the numbers.
"""

import math

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="align_keras")
class FanOutNormal(keras.initializers.VarianceScaling):
    """Normal with variance 2 / fan-out, as EfficientNets are initialised.

    Args:
        seed: int. Defaults to `None`, a different one for each initializer.
    """

    def __init__(self, seed=None):
        super().__init__(2.0, "fan_out", "untruncated_normal", seed)

    def __call__(self, shape, dtype=None):
        if keras.config.backend() != "jax":
            return super().__call__(shape, dtype)
        *window, _, filters = shape
        deviation = math.sqrt(2.0 / (math.prod(window) * filters))
        values = np.random.default_rng(self.seed).standard_normal(
            shape, "float32"
        )
        return keras.ops.convert_to_tensor(deviation * values, dtype)

    def get_config(self):
        return {"seed": super().get_config()["seed"]}


@keras.saving.register_keras_serializable(package="align_keras")
class SmallNormal(keras.initializers.TruncatedNormal):
    """Normal with standard deviation 0.02, truncated at twice that, as in BERT.

    Args:
        seed: int. Defaults to `None`, a different one for each initializer.
    """

    def __init__(self, seed=None):
        super().__init__(stddev=0.02, seed=seed)

    def __call__(self, shape, dtype=None):
        if keras.config.backend() != "jax":
            return super().__call__(shape, dtype)
        generator = np.random.default_rng(self.seed)
        values = generator.standard_normal(shape, "float32")
        while (beyond := np.abs(values) > 2.0).any():
            count = np.count_nonzero(beyond)
            values[beyond] = generator.standard_normal(count, "float32")
        return keras.ops.convert_to_tensor(self.stddev * values, dtype)

    def get_config(self):
        return {"seed": super().get_config()["seed"]}
