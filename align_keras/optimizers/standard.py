"""Keras' optimizers, with exact gradient clipping on several replicas."""

import keras

from align_keras import backend
from align_keras.optimizers.exclusions import DEFAULT_EXCLUSIONS
from align_keras.optimizers.exclusions import is_excluded
from align_keras.optimizers.rate_multipliers import RateMultipliers


@keras.saving.register_keras_serializable(package="align_keras")
class Adam(
    RateMultipliers,
    backend.ReplicaClipping,
    backend.AdamStep,
    keras.optimizers.Adam,
):
    """`keras.optimizers.Adam` that clips the gradient of the global batch.

    See `RateMultipliers` for learning rates of single variables.
    """


@keras.saving.register_keras_serializable(package="align_keras")
class SGD(RateMultipliers, backend.ReplicaClipping, keras.optimizers.SGD):
    """`keras.optimizers.SGD` that clips the gradient of the global batch.

    See `RateMultipliers` for learning rates of single variables.
    """


@keras.saving.register_keras_serializable(package="align_keras")
class AdamW(
    RateMultipliers,
    backend.ReplicaClipping,
    backend.AdamStep,
    keras.optimizers.AdamW,
):
    """`keras.optimizers.AdamW` with exclusions and clipping of global batches.

    It clips the gradient of the global batch, like `Adam` and `SGD` here.

    Args:
        *args: Arguments of `keras.optimizers.AdamW`.
        exclude_from_weight_decay: list of regular expressions that are
            searched for in the paths of variables. Variables without decay.
            Defaults to biases, normalisation parameters, the temperature and
            the factors of LoRA. Pass `[]` to decay everything.
        **kwargs: Arguments of `keras.optimizers.AdamW`, and
            `rate_multipliers`, see `RateMultipliers`.

    Example:

    ```python
    optimizer = AdamW(1e-3, weight_decay=1e-2, global_clipnorm=1.0)
    model.compile(optimizer=optimizer, loss=ContrastiveLoss())
    ```
    """

    def __init__(self, *args, exclude_from_weight_decay=None, **kwargs):
        super().__init__(*args, **kwargs)
        if exclude_from_weight_decay is None:
            exclude_from_weight_decay = DEFAULT_EXCLUSIONS
        self.decay_exclusions = list(exclude_from_weight_decay)

    def build(self, variables):
        """Create the moments and decide which variables are not decayed."""
        if self.built:
            return
        excluded = [
            v for v in variables if is_excluded(self.decay_exclusions, v)
        ]
        self.exclude_from_weight_decay(var_list=excluded)
        super().build(variables)

    def get_config(self):
        config = super().get_config()
        config["exclude_from_weight_decay"] = self.decay_exclusions
        return config
