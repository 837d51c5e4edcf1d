import keras
from keras import layers
from keras import ops

POOLINGS = ("auto", "average", "first", "none")


def at_least_float32(x):
    """Cast a 16-bit tensor to float32 and leave a wider one as it is."""
    narrow = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if narrow else x


def precise_mean(x, axis):
    """Average over `axis`; the sum of a large map needs more than 16 bits."""
    return ops.mean(at_least_float32(x), axis=axis)


@keras.saving.register_keras_serializable(package="align_keras")
class Pooling(layers.Layer):
    """Reduces the output of an encoder to one vector for each example.

    Args:
        mode: string. `"average"` over all places that the mask leaves,
            `"first"` place, or `"none"` for an output that is pooled already.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch, ..., channels)`.
        mask: Optional tensor of shape `(batch, ...)`, 1 or true for the
            places that count, 0 for padding.

    Returns:
        A float tensor of shape `(batch, channels)`.
    """

    def __init__(self, mode="average", **kwargs):
        super().__init__(**kwargs)
        self.mode = mode
        self.supports_masking = True

    def call(self, inputs, mask=None):
        places = tuple(range(1, len(inputs.shape) - 1))
        if self.mode == "none" or not places:
            return inputs
        if self.mode == "first":
            return inputs[:, *([0] * len(places))]
        if mask is None:
            mean = precise_mean(inputs, places)
        else:
            mean = _masked_mean(inputs, mask, places)
        return ops.cast(mean, self.compute_dtype)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}


def _masked_mean(inputs, mask, axis):
    """Average the places that count; where there is none, the result is 0."""
    if (
        any(
            None not in pair and pair[0] != pair[1]
            for pair in zip(mask.shape, inputs.shape[:-1], strict=False)
        )
        or len(mask.shape) != len(inputs.shape) - 1
    ):
        raise ValueError(
            "To average an encoder's output, its mask must have a value for "
            f"each place. Received: output of shape {tuple(inputs.shape)}, "
            f"mask of shape {tuple(mask.shape)}. Choose another pooling, or "
            "let the encoder pool."
        )
    x = at_least_float32(inputs)
    weights = ops.cast(mask, x.dtype)[..., None]
    total = ops.sum(weights, axis=axis)
    return ops.sum(x * weights, axis=axis) / ops.maximum(total, 1.0)


def resolve_pooling(mode, outputs, kind):
    """Choose how to pool an encoder's output where `mode` is `"auto"`.

    A map of places is averaged, a sequence of image patches too; of a
    sequence of tokens the first is taken, as in BERT.

    Args:
        mode: string. One of `POOLINGS`.
        outputs: tensor. The output of the encoder.
        kind: string. `"image"` or `"text"`.
    """
    if mode not in POOLINGS:
        raise ValueError(
            f"`{kind}_pooling` must be one of "
            f"{', '.join(map(repr, POOLINGS))}. "
            f"Received: {kind}_pooling={mode!r}"
        )
    rank = len(outputs.shape)
    if mode != "auto":
        return mode
    if rank == 2:
        return "none"
    return "first" if kind == "text" else "average"
