import collections
import math

import keras
from keras import layers
from keras_hub.models import FeaturePyramidBackbone

from align_keras.models.initializers import FanOutNormal
from align_keras.models.lora import LowRank
from align_keras.models.mbconv_block import MBConvBlock
from align_keras.models.mbconv_block import batch_normalization
from align_keras.models.presets import PresetMixin

Stage = collections.namedtuple(
    "Stage", "filters kernel_size strides expansion_ratio repeats"
)

# The seven stages of B0. The coefficients scale them.
STAGES = (
    Stage(16, 3, 1, 1, 1),
    Stage(24, 3, 2, 6, 2),
    Stage(40, 5, 2, 6, 2),
    Stage(80, 3, 2, 6, 3),
    Stage(112, 5, 1, 6, 3),
    Stage(192, 5, 2, 6, 4),
    Stage(320, 3, 1, 6, 1),
)
STEM_FILTERS = 32


def round_filters(filters, width_coefficient, divisor=8):
    """Scale a number of channels and round it to a multiple of `divisor`."""
    scaled = filters * width_coefficient
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * scaled:
        rounded += divisor
    return rounded


def round_repeats(repeats, depth_coefficient):
    """Scale the number of blocks of a stage, rounding up."""
    return math.ceil(repeats * depth_coefficient)


@keras.saving.register_keras_serializable(package="align_keras")
class EfficientNetBackbone(PresetMixin, LowRank, FeaturePyramidBackbone):
    """An EfficientNet without its head convolution, as ALIGN uses it.

    The output is the feature map of the last block, which ALIGN pools
    directly. A 289x289 image gives a 9x9 map. Two details are needed to match
    the weights of trained ALIGN models: strided convolutions pad by fixed
    amounts, whatever the parity of their input, and the drop rate of the
    residual branches grows with the block index over all blocks.

    There are presets for the sizes B0 to B7 and L2, `"efficientnet_b0"` to
    `"efficientnet_l2"`.

    Args:
        width_coefficient: float. Multiplies the channels; B0 has 1.0.
        depth_coefficient: float. Multiplies the blocks; B0 has 1.0.
        image_shape: tuple. Shape of an image in the given `data_format`.
            Defaults to `None`: three channels and any size.
        dropout: float. Drop rate of the residual branch at the end of the
            network; block `i` of `n` has the rate `dropout * i / n`.
            Defaults to `0.2`.
        batch_norm: string. Which examples share statistics in training:
            `"local"`, those of a replica; `"synchronized"`, those of all
            replicas; `"ghost"`, runs of `virtual_batch_size` examples. On
            JAX, where a program sees the global batch, `"local"` is the same
            as `"synchronized"`. Defaults to `"local"`.
        virtual_batch_size: int. Number of examples in a run with `"ghost"`.
            Defaults to `16`.
        padding: string. `"fixed"` pads strided convolutions with
            `kernel_size // 2 - 1` rows before and `kernel_size // 2` rows
            after the map, as the public ALIGN checkpoints require. `"same"`
            pads by the parity of the map, as TensorFlow does and as
            EfficientNets for ImageNet require. Defaults to `"fixed"`.
        activation: string. Defaults to `"silu"`, also known as swish.
        squeeze_activation: string. Activation inside squeeze and excitation,
            if it differs, as in the TensorFlow Model Garden. Defaults to
            `None`, which uses `activation`.
        data_format: string. `"channels_last"`, or `"channels_first"` for
            images and maps of shape `(batch, channels, height, width)`, which
            the network transposes at its input and outputs. Defaults to
            `"channels_last"`.
        dtype: string or `keras.DTypePolicy`. The dtype of computations and
            weights.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Attributes:
        pyramid_outputs: dict with the keys `"P1"` to `"P5"`. Symbolic
            outputs: the last map of each size, each half as high and wide as
            the one before. With them the network can serve as the backbone
            of KerasHub's detectors, segmenters and classifiers.

    Call arguments:
        images: float tensor of shape `(batch, height, width, 3)` with values
            from -1 to 1.

    Returns:
        A float tensor of shape `(batch, height / 32, width / 32, channels)`.

    Example:

    ```python
    encoder = EfficientNetBackbone(width_coefficient=1.0, depth_coefficient=1.1)
    encoder(np.zeros((1, 289, 289, 3)))  # Shape (1, 9, 9, 320).
    ```

    Reference:
        - [Tan and Le, 2019](https://arxiv.org/abs/1905.11946)
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 4.1.
    """

    # See `rematerialize_encoder`.
    rematerializes_blocks = True

    def __init__(
        self,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_shape=None,
        dropout=0.2,
        batch_norm="local",
        virtual_batch_size=16,
        padding="fixed",
        activation="silu",
        squeeze_activation=None,
        data_format="channels_last",
        dtype=None,
        **kwargs,
    ):
        _check_choice(
            "data_format", data_format, ("channels_last", "channels_first")
        )
        _check_choice("batch_norm", batch_norm, _BATCH_NORMS)
        _check_choice("padding", padding, ("fixed", "same"))
        # === Layers ===
        stem_filters = round_filters(STEM_FILTERS, width_coefficient)
        self.stem_pad = None
        if padding == "fixed":
            self.stem_pad = layers.ZeroPadding2D(
                ((0, 1), (0, 1)), dtype=dtype, name="stem_pad"
            )
        self.stem_conv = layers.Conv2D(
            stem_filters,
            3,
            strides=2,
            padding="valid" if padding == "fixed" else "same",
            use_bias=False,
            kernel_initializer=FanOutNormal(),
            data_format="channels_last",
            dtype=dtype,
            name="stem_conv",
        )
        self.stem_bn = batch_normalization(
            batch_norm, virtual_batch_size, dtype, "stem_bn"
        )
        self.stem_activation = layers.Activation(
            activation, dtype=dtype, name="stem_activation"
        )
        specs = list(block_specs(width_coefficient, depth_coefficient))
        self.blocks = [
            MBConvBlock(
                **spec,
                dropout=dropout * index / len(specs),
                padding=padding,
                activation=activation,
                squeeze_activation=squeeze_activation,
                batch_norm=batch_norm,
                virtual_batch_size=virtual_batch_size,
                dtype=dtype,
            )
            for index, spec in enumerate(specs)
        ]

        # === Functional Model ===
        channels_first = data_format == "channels_first"
        if image_shape is None:
            image_shape = (3, None, None) if channels_first else (None, None, 3)
        image_input = keras.Input(shape=image_shape, name="images")
        x = image_input
        if channels_first:
            x = layers.Permute((2, 3, 1), dtype=dtype, name="from_first")(x)
        if self.stem_pad is not None:
            x = self.stem_pad(x)
        x = self.stem_activation(self.stem_bn(self.stem_conv(x)))
        pyramid = []
        for block in self.blocks:
            if block.strides > 1:
                pyramid.append(x)
            x = block(x)
        pyramid.append(x)
        if channels_first:
            pyramid = [
                layers.Permute((3, 1, 2), dtype=dtype, name=f"first_p{level}")(
                    x
                )
                for level, x in enumerate(pyramid, 1)
            ]
        super().__init__(
            inputs=image_input, outputs=pyramid[-1], dtype=dtype, **kwargs
        )
        # The last map of each size, as KerasHub's detectors expect them.
        self.pyramid_outputs = {
            f"P{level}": outputs for level, outputs in enumerate(pyramid, 1)
        }

        # === Config ===
        self.width_coefficient = width_coefficient
        self.depth_coefficient = depth_coefficient
        self.image_shape = tuple(image_shape)
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.virtual_batch_size = virtual_batch_size
        self.padding = padding
        self.activation = activation
        self.squeeze_activation = squeeze_activation
        self.data_format = data_format
        self.num_features = specs[-1]["output_filters"]

    def count_macs(self, image_size):
        """Count the multiply-accumulate operations for one image.

        As in published numbers, this includes the convolutions and squeeze
        and excitation, but not normalisation and activations.

        Args:
            image_size: int. Height and width of the image in pixels.

        Returns:
            int. The number of multiply-accumulate operations; twice that is
            the number of floating-point operations.
        """
        size = self.stem_conv.compute_output_shape(
            self._padded((1, image_size, image_size, 3), self.stem_pad)
        )[1]
        macs = size * size * 9 * 3 * self.stem_conv.filters
        for block in self.blocks:
            hidden = block.input_filters * block.expansion_ratio
            if block.expansion_ratio != 1:
                macs += size * size * block.input_filters * hidden
            size = block.compute_output_shape(
                (1, size, size, block.input_filters)
            )[1]
            macs += size * size * block.kernel_size**2 * hidden
            macs += 2 * hidden * block.squeeze_reduce.units
            macs += size * size * hidden * block.output_filters
        return macs

    def _padded(self, shape, pad):
        return shape if pad is None else pad.compute_output_shape(shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "width_coefficient": self.width_coefficient,
                "depth_coefficient": self.depth_coefficient,
                "image_shape": self.image_shape,
                "dropout": self.dropout,
                "batch_norm": self.batch_norm,
                "virtual_batch_size": self.virtual_batch_size,
                "padding": self.padding,
                "activation": self.activation,
                "squeeze_activation": self.squeeze_activation,
                "data_format": self.data_format,
            }
        )
        return config


_BATCH_NORMS = ("local", "synchronized", "ghost")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}"
        )


def block_specs(width_coefficient, depth_coefficient):
    """Yield the arguments of each `MBConvBlock` of a scaled network."""
    input_filters = round_filters(STEM_FILTERS, width_coefficient)
    for number, stage in enumerate(STAGES, start=1):
        output_filters = round_filters(stage.filters, width_coefficient)
        for repeat in range(round_repeats(stage.repeats, depth_coefficient)):
            yield {
                "name": f"stage{number}_block{repeat + 1}",
                "input_filters": input_filters,
                "output_filters": output_filters,
                "kernel_size": stage.kernel_size,
                "strides": stage.strides if repeat == 0 else 1,
                "expansion_ratio": stage.expansion_ratio,
                "residual": repeat > 0,
            }
            input_filters = output_filters
