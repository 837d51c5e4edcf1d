import math

import keras
from keras import layers
from keras import ops

from align_keras.models.pooling import at_least_float32


@keras.saving.register_keras_serializable(package="align_keras")
class ContrastiveHead(layers.Layer):
    """Normalises both embeddings and holds the softmax temperature.

    The layer learns the logarithm of the temperature and clips it to a range
    after each optimizer step, so that no step can make the temperature
    negative or drive it to zero. The layer always computes in float32, or in
    float64 if that is its dtype or Keras' default.

    Args:
        initial_temperature: float. Defaults to `1.0`, as in the paper, where
            the temperature converges to about 1/64.
        temperature_range: pair of floats. Bounds of the temperature. Defaults
            to `(0.005, 10.0)`.
        temperature_form: string. `"log"` learns the logarithm; `"raw"` learns
            the temperature itself without bounds, as the public checkpoints
            were trained. Defaults to `"log"`.
        initial_bias: float. Initial value of the learned logit bias, which
            `SigmoidLoss` needs. Defaults to `None`, for no bias.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        image_features: float tensor of shape `(batch, dim)`.
        text_features: float tensor of shape `(batch, dim)`.

    Returns:
        A pair of float32 tensors, both inputs with rows of unit length.

    Example:

    ```python
    head = ContrastiveHead(initial_temperature=0.07)
    images, texts = head(np.ones((2, 8)), np.ones((2, 8)))
    ```

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 4.1.
    """

    def __init__(
        self,
        initial_temperature=1.0,
        temperature_range=(0.005, 10.0),
        temperature_form="log",
        initial_bias=None,
        **kwargs,
    ):
        wide = "float64" in (
            keras.config.floatx(),
            keras.dtype_policies.get(kwargs.get("dtype")).compute_dtype,
        )
        dtype = "float64" if wide else "float32"
        super().__init__(**{**kwargs, "dtype": dtype})
        # With autocast, Keras would cast wider features down to the dtype of
        # the layer.
        self.autocast = False
        low, high = temperature_range
        if temperature_form not in ("log", "raw"):
            raise ValueError(
                "`temperature_form` must be 'log' or 'raw'. "
                f"Received: temperature_form={temperature_form!r}"
            )
        if not 0 < low <= initial_temperature <= high:
            raise ValueError(
                "`initial_temperature` must lie within `temperature_range`, "
                "whose bounds are positive. Received: initial_temperature="
                f"{initial_temperature}, temperature_range="
                f"{tuple(temperature_range)}"
            )
        self.initial_temperature = initial_temperature
        self.temperature_range = (low, high)
        self.temperature_form = temperature_form
        self.initial_bias = initial_bias

    def build(self, image_features_shape, text_features_shape):
        is_log = self.temperature_form == "log"
        value = self.initial_temperature
        self._variable = self.add_weight(
            name="log_temperature" if is_log else "temperature",
            shape=(),
            initializer=keras.initializers.Constant(
                math.log(value) if is_log else value
            ),
            constraint=LogRange(*self.temperature_range) if is_log else None,
        )
        self.bias = None
        if self.initial_bias is not None:
            self.bias = self.add_weight(
                name="bias",
                shape=(),
                initializer=keras.initializers.Constant(self.initial_bias),
            )
        self.built = True

    @property
    def temperature(self):
        """The temperature as a scalar tensor, through which gradients flow."""
        if self.temperature_form == "log":
            return ops.exp(ops.convert_to_tensor(self._variable))
        return ops.convert_to_tensor(self._variable)

    def set_temperature(self, value):
        """Set the temperature to a float within its range."""
        is_log = self.temperature_form == "log"
        self._variable.assign(math.log(value) if is_log else value)

    def load_own_variables(self, store):
        if self.bias is not None and len(store.keys()) == 1:
            # Saved without a bias, which keeps its initial value.
            self._variable.assign(store["0"])
        else:
            super().load_own_variables(store)

    def call(self, image_features, text_features):
        return self.normalize(image_features), self.normalize(text_features)

    def normalize(self, features):
        """Scale the rows of `features` to unit length, at least in float32."""
        x = at_least_float32(features)
        # For a vector of zeros, as in padding, the gradient stays finite.
        squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(ops.maximum(squares, 1e-24))

    def compute_output_shape(self, image_features_shape, text_features_shape):
        return image_features_shape, text_features_shape

    def get_config(self):
        config = super().get_config()
        if self.compute_dtype != "float64":
            del config["dtype"]
        config.update(
            {
                "initial_temperature": self.initial_temperature,
                "temperature_range": self.temperature_range,
                "temperature_form": self.temperature_form,
                "initial_bias": self.initial_bias,
            }
        )
        return config


@keras.saving.register_keras_serializable(package="align_keras")
class LogRange(keras.constraints.Constraint):
    """Keeps a variable between the logarithms of two bounds."""

    def __init__(self, low, high):
        self.low = low
        self.high = high

    def __call__(self, value):
        return ops.clip(value, math.log(self.low), math.log(self.high))

    def get_config(self):
        return {"low": self.low, "high": self.high}
