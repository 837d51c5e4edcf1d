import keras
from keras import layers
from keras import ops

from align_keras.models.batch_normalization import BatchNormalization
from align_keras.models.convolution import convolve_and_normalize
from align_keras.models.ghost_batch_normalization import GhostBatchNormalization
from align_keras.models.initializers import FanOutNormal
from align_keras.models.pooling import precise_mean
from align_keras.models.rematerialization import rematerialize


def batch_normalization(kind, virtual_batch_size, dtype, name):
    """Create a batch normalisation layer of an EfficientNet.

    Args:
        kind: string. `"local"`, `"synchronized"` or `"ghost"`.
        virtual_batch_size: int. Size of a run with `"ghost"`.
        dtype: The dtype policy of the layer.
        name: string. The name of the layer.
    """
    kwargs = {"momentum": 0.99, "epsilon": 1e-3, "dtype": dtype, "name": name}
    if kind == "ghost":
        return GhostBatchNormalization(virtual_batch_size, **kwargs)
    # On JAX one program sees the global batch, so statistics already cover
    # all devices, and Keras refuses the argument.
    synchronized = (
        kind == "synchronized" and keras.config.backend() == "tensorflow"
    )
    return BatchNormalization(synchronized=synchronized, **kwargs)


@keras.saving.register_keras_serializable(package="align_keras")
class MBConvBlock(layers.Layer):
    """Inverted bottleneck with squeeze and excitation.

    The block consists of an expansion by a 1x1 convolution, a depthwise
    convolution, squeeze and excitation, a projection by a 1x1 convolution
    and, with `residual`, a skip connection. In training, the residual branch
    is dropped at random for whole examples.

    Args:
        input_filters: int. Number of input channels.
        output_filters: int. Number of output channels.
        kernel_size: int. Size of the depthwise kernel.
        strides: int. 1 or 2.
        expansion_ratio: int. Hidden width relative to `input_filters`; 1
            leaves out the expansion.
        squeeze_ratio: float. Width of the squeeze, relative to
            `input_filters`. Defaults to `0.25`.
        residual: bool. Whether to add the input to the output. Defaults to
            `False`.
        dropout: float. Probability of dropping the branch of an example in
            training (drop connect). Defaults to `0.0`.
        padding: string. How a strided convolution pads, see
            `EfficientNetBackbone`. Defaults to `"fixed"`.
        activation: string. Defaults to `"silu"`.
        squeeze_activation: string. See `EfficientNetBackbone`. Defaults to
            `None`.
        batch_norm: string. See `EfficientNetBackbone`. Defaults to `"local"`.
        virtual_batch_size: int. See `EfficientNetBackbone`. Defaults to `16`.
    """

    def __init__(
        self,
        input_filters,
        output_filters,
        kernel_size,
        strides,
        expansion_ratio,
        squeeze_ratio=0.25,
        residual=False,
        dropout=0.0,
        padding="fixed",
        activation="silu",
        squeeze_activation=None,
        batch_norm="local",
        virtual_batch_size=16,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.input_filters = input_filters
        self.output_filters = output_filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.expansion_ratio = expansion_ratio
        self.squeeze_ratio = squeeze_ratio
        self.residual = residual
        self.dropout = dropout
        self.padding = padding
        self.activation = keras.activations.get(activation)
        self.squeeze_activation = squeeze_activation
        self.batch_norm = batch_norm
        self.virtual_batch_size = virtual_batch_size

        dtype = self.dtype_policy
        hidden = input_filters * expansion_ratio
        if expansion_ratio != 1:
            self.expand_conv = self._pointwise(hidden, "expand_conv")
            self.expand_bn = self._normalization("expand_bn")
        self.pad = None
        if strides > 1 and padding == "fixed":
            before, after = kernel_size // 2 - 1, kernel_size // 2
            self.pad = layers.ZeroPadding2D(
                ((before, after), (before, after)), dtype=dtype, name="pad"
            )
        self.depthwise_conv = layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            padding="valid" if self.pad else "same",
            use_bias=False,
            depthwise_initializer=FanOutNormal(),
            data_format="channels_last",
            dtype=dtype,
            name="depthwise_conv",
        )
        self.depthwise_bn = self._normalization("depthwise_bn")
        self.squeeze_reduce = self._dense(
            max(1, int(input_filters * squeeze_ratio)), "squeeze_reduce"
        )
        self.squeeze_expand = self._dense(hidden, "squeeze_expand")
        self.project_conv = self._pointwise(output_filters, "project_conv")
        self.project_bn = self._normalization("project_bn")
        self.drop_connect = layers.Dropout(
            dropout,
            noise_shape=(None, 1, 1, 1),
            dtype=dtype,
            name="drop_connect",
        )

    def _pointwise(self, filters, name):
        return layers.Conv2D(
            filters,
            1,
            use_bias=False,
            kernel_initializer=FanOutNormal(),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name=name,
        )

    def _dense(self, units, name):
        # Equivalent to a 1x1 convolution of a 1x1 map.
        return layers.Dense(
            units,
            kernel_initializer=FanOutNormal(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _normalization(self, name):
        return batch_normalization(
            self.batch_norm, self.virtual_batch_size, self.dtype_policy, name
        )

    def build(self, input_shape):
        hidden = self.input_filters * self.expansion_ratio
        narrow = (None, None, None, self.input_filters)
        wide = (None, None, None, hidden)
        projected = (None, None, None, self.output_filters)
        if self.expansion_ratio != 1:
            self.expand_conv.build(narrow)
            self.expand_bn.build(wide)
        # These have no weights, but quantisation needs all layers built.
        if self.pad is not None:
            self.pad.build(wide)
        self.drop_connect.build(projected)
        self.depthwise_conv.build(wide)
        self.depthwise_bn.build(wide)
        self.squeeze_reduce.build((None, hidden))
        self.squeeze_expand.build((None, self.squeeze_reduce.units))
        self.project_conv.build(wide)
        self.project_bn.build(projected)
        self.built = True

    def call(self, inputs, training=None):
        return rematerialize(self, lambda x: self._run(x, training), inputs)

    def _run(self, inputs, training):
        x = inputs
        if self.expansion_ratio != 1:
            x = convolve_and_normalize(
                self.expand_conv, self.expand_bn, x, training, self.activation
            )
        if self.pad is not None:
            x = self.pad(x)
        x = convolve_and_normalize(
            self.depthwise_conv,
            self.depthwise_bn,
            x,
            training,
            self.activation,
        )
        x = x * self._gate(x)
        x = convolve_and_normalize(
            self.project_conv, self.project_bn, x, training
        )
        if self.residual:
            x = self.drop_connect(x, training=training) + inputs
        return x

    def _gate(self, x):
        squeezed = precise_mean(x, axis=(1, 2))
        squeezed = ops.cast(squeezed, self.compute_dtype)
        squeezed = self.squeeze_reduce(squeezed)
        if self.squeeze_activation is None:
            squeezed = self.activation(squeezed)
        else:
            squeezed = keras.activations.get(self.squeeze_activation)(squeezed)
        gate = ops.sigmoid(self.squeeze_expand(squeezed))
        return gate[:, None, None, :]

    def compute_output_shape(self, input_shape):
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        spatial = self.depthwise_conv.compute_output_shape(input_shape)
        return (*spatial[:-1], self.output_filters)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "input_filters": self.input_filters,
                "output_filters": self.output_filters,
                "kernel_size": self.kernel_size,
                "strides": self.strides,
                "expansion_ratio": self.expansion_ratio,
                "squeeze_ratio": self.squeeze_ratio,
                "residual": self.residual,
                "dropout": self.dropout,
                "padding": self.padding,
                "activation": keras.activations.serialize(self.activation),
                "squeeze_activation": self.squeeze_activation,
                "batch_norm": self.batch_norm,
                "virtual_batch_size": self.virtual_batch_size,
            }
        )
        return config
