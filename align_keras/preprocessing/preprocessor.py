"""Turn image–text pairs into the inputs of `AlignDualEncoder`."""

import keras
import keras_hub
from keras import ops

from align_keras import keras_hub_internals
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.models.raw_inputs import named_pair
from align_keras.preprocessing.image_converter import AlignImageConverter
from align_keras.preprocessing.tf_graph import in_tf_graph
from align_keras.preprocessing.tokenizer import AlignTokenizer

_PACKERS = (
    keras_hub.layers.MultiSegmentPacker,
    keras_hub.layers.StartEndPacker,
)


@keras.saving.register_keras_serializable(package="align_keras")
class AlignPreprocessor(presets.StoredPart, keras_hub.models.Preprocessor):
    """Turns images and texts into the arrays that ALIGN's towers take.

    Texts become `[CLS] … [SEP]`, truncated or padded with `[PAD]` to
    `sequence_length` tokens; a truncated text keeps its `[SEP]`. Images go
    through `AlignImageConverter`. The layer runs eagerly, in
    `tf.data.Dataset.map` and inside a SavedModel. It needs no TensorFlow when
    it runs eagerly.

    Args:
        tokenizer: `AlignTokenizer`, or another tokenizer of KerasHub, whose
            start, end and padding tokens replace those of BERT. Defaults to
            `None`, for no texts.
        image_converter: `AlignImageConverter`. Defaults to `None`, for no
            images.
        sequence_length: int. Tokens per text, including special tokens.
            Defaults to `None`, the length of `packer`, or else 64
            (section 4.1 of the paper).
        packer: `keras_hub.layers.StartEndPacker` or `MultiSegmentPacker`.
            Puts other tokens around a text than those of the tokenizer.
            Defaults to `None`.

    Example:

    ```python
    preprocessor = AlignPreprocessor(
        tokenizer=AlignTokenizer(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bus"]
        ),
        image_converter=AlignImageConverter(image_size=64),
    )
    preprocessor(
        {"images": np.zeros((1, 90, 120, 3), "uint8"), "texts": ["a bus"]}
    )
    # images (1, 64, 64, 3), token_ids and padding_mask (1, 64)
    ```
    """

    backbone_cls = AlignDualEncoder
    tokenizer_cls = AlignTokenizer
    image_converter_cls = AlignImageConverter

    def __init__(
        self,
        tokenizer=None,
        image_converter=None,
        sequence_length=None,
        packer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(packer, dict):
            packer = keras.saving.deserialize_keras_object(packer)
        if packer is not None and not isinstance(packer, _PACKERS):
            raise ValueError(
                "`packer` must be a `StartEndPacker` or `MultiSegmentPacker` "
                f"of `keras_hub.layers`. Received: packer={packer!r}"
            )
        of_packer = 64 if packer is None else packer.sequence_length
        if sequence_length is None:
            sequence_length = of_packer
        if packer is not None and sequence_length != of_packer:
            raise ValueError(
                "`sequence_length` must be that of the packer, or be left out. "
                f"Received: sequence_length={sequence_length}, and a packer "
                f"with sequence_length={of_packer}"
            )
        if sequence_length < 3:
            raise ValueError(
                "`sequence_length` must leave room for [CLS], a token and "
                f"[SEP]. Received: {sequence_length}."
            )
        self.tokenizer = tokenizer
        self.image_converter = image_converter
        self.sequence_length = sequence_length
        self.packer = packer

    @classmethod
    def from_preset(cls, preset, **kwargs):
        """Create the preprocessor of a preset.

        Args:
            preset: string. A local preset directory, a handle that KerasHub
                supports, or a directory in Hugging Face's layout.
            **kwargs: Arguments of the constructor that replace those of the
                preset.

        Returns:
            An `AlignPreprocessor`.
        """
        return presets.load_part(cls, preset, "preprocessor", **kwargs)

    def build(self, input_shape=None):
        # The parts have no weights; without this, Keras warns that they are
        # not built.
        self.built = True

    def __call__(self, inputs, *args, **kwargs):
        if not in_tf_graph():
            inputs = _all_of_a_kind(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, y=None, sample_weight=None):
        """Convert images, texts or both.

        Passed to `tf.data.Dataset.map`, it accepts elements that are dicts,
        pairs `(image, text)`, pairs with a weight, or
        `(x, y, sample_weight)`, where `x` is a dict or a pair.

        Args:
            inputs: dict with `"images"` (arrays or encoded files, see
                `AlignImageConverter`; eagerly also a list of paths or bytes),
                `"texts"` (string, list of strings or string tensor), or both;
                or a tuple of both. `"token_ids"` and `"padding_mask"` pass
                through.
            y: labels, which pass through; or the texts, if `inputs` are
                images. Defaults to `None`.
            sample_weight: weights, which pass through. Defaults to `None`.

        Returns:
            dict with `"images"`, float32 `(batch, height, width, 3)`, and
            `"token_ids"` and `"padding_mask"`, int32 `(batch,
            sequence_length)`. Only the outputs for the given keys are
            present. With `y` or `sample_weight`, a tuple of the dict and
            these.
        """
        if not isinstance(inputs, dict):
            if not isinstance(inputs, tuple):
                inputs, y = (inputs, y), None
            inputs = named_pair(inputs)
        outputs = self._convert_all(inputs)
        if keras_hub_internals.in_grain_data_pipeline():
            outputs = keras_hub_internals.to_grain(outputs)
        if sample_weight is not None:
            return outputs, y, sample_weight
        return outputs if y is None else (outputs, y)

    def _convert_all(self, inputs):
        tokens = {"token_ids", "padding_mask"} & set(inputs)
        unknown = set(inputs) - {"images", "texts"} - tokens
        if unknown or not inputs or (tokens and "texts" in inputs):
            raise ValueError(
                'The preprocessor takes a dict with the keys "images" and '
                f'"texts". Received the keys: {sorted(inputs)}.'
            )
        outputs = {name: inputs[name] for name in tokens}
        if "images" in inputs:
            outputs["images"] = self._convert(inputs["images"])
        if "texts" in inputs:
            outputs.update(self.tokenize(inputs["texts"]))
        return outputs

    def tokenize(self, texts):
        """Turn texts into token ids of equal length.

        Args:
            texts: string, list of strings or string tensor `()` or
                `(batch,)`.

        Returns:
            dict of int32 tensors `(sequence_length,)` or `(batch,
            sequence_length)`: `"token_ids"`, and `"padding_mask"` with 1 for
            real tokens and 0 for `[PAD]`.
        """
        if self.tokenizer is None:
            raise ValueError(
                "This preprocessor takes no texts: it was made without a "
                "`tokenizer`."
            )
        token_ids, padding_mask = self._pack(self.tokenizer(texts))
        if in_tf_graph():
            import tensorflow as tf

            shape = (*texts.shape, self.sequence_length)
            token_ids = tf.ensure_shape(token_ids, shape)
            padding_mask = tf.ensure_shape(padding_mask, shape)
            padding_mask = tf.cast(padding_mask, tf.int32)
        else:
            padding_mask = ops.cast(padding_mask, "int32")
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    def describe_text(self):
        """Return the configs of tokenizer and packer, for other runtimes."""
        return {
            name: {"class_name": type(part).__name__, **part.get_config()}
            for name, part in (
                ("tokenizer", self.tokenizer),
                ("packer", self._sized_packer()),
            )
        }

    def _pack(self, tokens):
        """Put tokens around texts, and truncate or pad them."""
        packer = self._sized_packer()
        if isinstance(packer, keras_hub.layers.StartEndPacker):
            packer.return_padding_mask = True
            return packer(tokens)
        token_ids, _ = packer((tokens,))
        return token_ids, ops.not_equal(token_ids, packer.pad_value or 0)

    def _sized_packer(self):
        """Return the packer, with the current `sequence_length`."""
        # Made here because a preset's vocabulary is loaded after `__init__`.
        packer = self.packer or self._packer_of_tokenizer()
        return type(packer).from_config(
            {**packer.get_config(), "sequence_length": self.sequence_length}
        )

    def _packer_of_tokenizer(self):
        start, end, padding = (
            getattr(self.tokenizer, f"{name}_token_id", None)
            for name in ("start", "end", "pad")
        )
        if end is None:
            raise ValueError(
                f"`{type(self.tokenizer).__name__}` has no end token. Pass a "
                "`packer` with the tokens that go around a text, such as "
                "`keras_hub.layers.StartEndPacker(sequence_length=64, "
                "end_value=1)`."
            )
        return keras_hub.layers.StartEndPacker(
            self.sequence_length, start, end, padding
        )

    def get_config(self):
        config = super().get_config()
        config["sequence_length"] = self.sequence_length
        config["packer"] = None
        if self.packer is not None:
            config["packer"] = keras.saving.serialize_keras_object(self.packer)
            # `self.sequence_length` may have been changed since.
            config["packer"]["config"]["sequence_length"] = self.sequence_length
        return config

    def _convert(self, images):
        if self.image_converter is None:
            raise ValueError(
                "This preprocessor takes no images: it was made without an "
                "`image_converter`."
            )
        if isinstance(images, (list, str, bytes)):
            return ops.convert_to_tensor(self.image_converter.load(images))
        return self.image_converter(images)


def _all_of_a_kind(inputs):
    """Replace tensors by arrays if strings or arrays come with them.

    Keras refuses the mixture.
    """
    is_dict = isinstance(inputs, dict)
    if not is_dict and not isinstance(inputs, tuple):
        return inputs
    values = list(inputs.values() if is_dict else inputs)
    tensors = [ops.is_tensor(value) for value in values]
    if all(tensors) or not any(tensors):
        return inputs
    values = [
        ops.convert_to_numpy(value) if is_tensor else value
        for value, is_tensor in zip(values, tensors, strict=True)
    ]
    if is_dict:
        return dict(zip(inputs, values, strict=True))
    return tuple(values)
