import keras
from keras import layers
from keras import ops

from align_keras import backend
from align_keras.models.pooling_modes import GATHERED
from align_keras.models.pooling_modes import POOLINGS

# Texts are cut to a multiple of this number of tokens: the libraries that
# multiply matrices prepare a kernel for each shape, and keep a limited number.
LENGTH_STEP = 8


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
        mode: string. `"average"` averages the positions that the mask keeps,
            `"first"` takes the first position, `"last"` takes the last one
            that the mask keeps, and `"none"` returns an output that is
            already pooled. Defaults to `"average"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch, ..., channels)`.
        mask: Optional tensor of shape `(batch, ...)`, 1 or true for positions
            that count, 0 for padding.

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
        if self.mode == "last":
            return _last(inputs, mask)
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
    """Average the positions that count; the result is 0 if there are none."""
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


def _last(inputs, mask):
    """Take the last position that counts, or the first if there is none."""
    if len(inputs.shape) != 3:
        raise ValueError(
            "Only a sequence has a last place. Received: output of shape "
            f"{tuple(inputs.shape)}. Choose another pooling."
        )
    if mask is None:
        return inputs[:, -1]
    places = ops.arange(ops.shape(inputs)[1])
    last = ops.max(ops.cast(mask, places.dtype) * places, axis=1)
    return ops.take_along_axis(inputs, last[:, None, None], axis=1)[:, 0]


def without_shared_padding(tokens, longest):
    """Cut off the last positions where no text of a batch has a token.

    Most captions are far shorter than the length to which they are padded.
    Encoders that ignore padding give the same results, except for rounding.
    Nothing is cut off where shapes must be known in advance, if a text has no
    tokens, since encoders then attend to its padding, or if the encoder will
    refuse the shapes.

    Args:
        tokens: dict with `"token_ids"` and `"padding_mask"`, int tensors of
            shape `(batch, length)`.
        longest: int. The greatest length that the encoder takes.

    Returns:
        A dict like `tokens`, whose length is the next multiple of
        `LENGTH_STEP`, or the given length if that is less.
    """
    mask = tokens["padding_mask"]
    fits = tokens["token_ids"].shape == mask.shape
    if mask.shape[1] is not None:
        fits = fits and mask.shape[1] <= longest
    is_symbolic = isinstance(mask, keras.KerasTensor)
    if is_symbolic or not fits or not backend.lengths_may_vary():
        return tokens
    mask = ops.cast(mask, "bool")
    is_empty = ops.logical_not(ops.any(mask, axis=1))
    used = ops.logical_or(ops.any(mask, axis=0), ops.any(is_empty))
    places = ops.cumsum(ops.ones_like(used, "int32"))
    last = ops.max(ops.where(used, places, 1))
    steps = (last + LENGTH_STEP - 1) // LENGTH_STEP
    return {
        name: tensor[:, : steps * LENGTH_STEP]
        for name, tensor in tokens.items()
    }


def until_end_of_text(token_ids):
    """Return a mask up to the first token with the highest id in each text."""
    places = ops.cumsum(ops.ones_like(token_ids), axis=1)
    ends = ops.cast(ops.argmax(token_ids, axis=1), token_ids.dtype)
    return ops.cast(places <= ops.expand_dims(ends, 1) + 1, "int32")


def resolve_pooling(mode, outputs, kind, encoder=None):
    """Choose how to pool the output of an encoder if `mode` is `"auto"`.

    Feature maps and sequences of image patches are averaged. From a sequence
    of tokens, one token is taken: the one that represents the text in
    encoders of this class, see `GATHERED`.

    Args:
        mode: string. One of `POOLINGS`.
        outputs: tensor. The output of the encoder.
        kind: string. `"image"` or `"text"`.
        encoder: `keras.Model`. Defaults to `None`, for an unknown encoder.

    Returns:
        A string, one of `POOLINGS` except `"auto"`.
    """
    known = [m for m in POOLINGS if kind == "text" or m != "end_of_text"]
    if mode not in known:
        raise ValueError(
            f"`{kind}_pooling` must be one of "
            f"{', '.join(map(repr, known))}. "
            f"Received: {kind}_pooling={mode!r}"
        )
    rank = len(outputs.shape)
    if mode != "auto":
        return mode
    if rank == 2:
        return "none"
    if kind == "image":
        return "average"
    names = {cls.__name__ for cls in type(encoder).__mro__}
    for place, classes in GATHERED.items():
        if names & set(classes):
            return place
    raise ValueError(
        "It is not known which token represents a text in the text encoder "
        f"`{type(encoder).__name__}`: in a causal encoder, the first would be "
        "the same for all texts that begin alike. Choose text_pooling='first', "
        "'last', 'end_of_text' or 'average', or let the encoder name a "
        "'pooled_output'. Received: text_pooling='auto'"
    )
