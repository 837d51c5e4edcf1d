import os

import keras
from keras import layers
from keras import ops
from keras_hub.models import Backbone

from align_keras import backend
from align_keras.models.contrastive_head import ContrastiveHead
from align_keras.models.contrastive_trainer import ContrastiveTrainer
from align_keras.models.lora import LowRank
from align_keras.models.lora import described_without_lora
from align_keras.models.pooling import Pooling
from align_keras.models.pooling import resolve_pooling
from align_keras.models.pooling import until_end_of_text
from align_keras.models.pooling import without_shared_padding
from align_keras.models.presets import PresetMixin
from align_keras.models.raw_inputs import RawInputs
from align_keras.models.raw_inputs import is_float
from align_keras.models.rematerialization import rematerialize_encoder
from align_keras.models.saving import Saving
from align_keras.models.towers import declared
from align_keras.models.towers import image_input
from align_keras.models.towers import main_output
from align_keras.models.towers import output_mask
from align_keras.models.towers import trained_variables


def _require_float(images):
    if not is_float(images):
        raise ValueError(
            "The network takes float images with values from -1 to 1. Pass "
            "others through the preprocessor, as `encode_image`, `fit` and "
            "`predict` do where `model.preprocessor` is set. Received images "
            f"of dtype: {getattr(images, 'dtype', type(images).__name__)}"
        )


@keras.saving.register_keras_serializable(package="align_keras")
class AlignDualEncoder(
    RawInputs, ContrastiveTrainer, Saving, PresetMixin, LowRank, Backbone
):
    """ALIGN: an image encoder and a text encoder with one embedding space.

    The output of each tower is pooled to one vector, projected to the common
    width where needed, and scaled to unit length. The inner product of an
    image embedding and a text embedding is therefore their cosine similarity.
    Train the model with `ContrastiveLoss` through `fit`, under any
    `tf.distribute` strategy or `keras.distribution` distribution. There are
    no labels.

    Args:
        image_encoder: `keras.Model`. Takes images of shape `(batch, height,
            width, 3)` and returns a feature map, a sequence, or vectors.
        text_encoder: `keras.Model`. Takes a dict with `"token_ids"` and
            whichever of `"padding_mask"` and `"segment_ids"` it declares, and
            returns a sequence, vectors, or a dict with `"pooled_output"` or
            `"sequence_output"`.
        embedding_dim: int. Width of the embeddings. `None` uses the width of
            the image features, which are then not projected, as in the paper.
            Any other width adds a linear projection to the image tower as
            well. The text tower always has one. Defaults to `None`.
        initial_temperature: float. Initial value of the softmax temperature.
            Defaults to `1.0`.
        temperature_range: pair of floats. Lower and upper bound of the
            learned temperature. Defaults to `(0.005, 10.0)`.
        temperature_form: string. `"log"` or `"raw"`, see `ContrastiveHead`.
            Defaults to `"log"`.
        initial_bias: float. Initial value of the learned logit bias, which
            `SigmoidLoss` needs and other losses ignore. The SigLIP paper
            starts from a bias of -10 and a temperature of 0.1. Defaults to
            `None`, for no bias.
        image_pooling: string. `"average"`, `"first"`, `"last"` or `"none"`.
            `"auto"` averages any output that is not already a vector.
            Positions are left out if the encoder returns a `"padding_mask"`
            or its output carries a Keras mask. Defaults to `"auto"`.
        text_pooling: string. One of the values of `image_pooling`, applied to
            real tokens; or `"end_of_text"` for the token with the highest id,
            as in CLIP. `"auto"` takes the encoder's `"pooled_output"` if
            there is one, and otherwise the token that represents the text in
            known encoders: the first for BERT-like encoders, the last for
            GPT-2 and other decoders. Defaults to `"auto"`.
        preprocessor: `AlignPreprocessor`. Lets `encode_image`,
            `encode_text`, `fit`, `evaluate` and `predict` take raw images and
            strings. It is saved and exported with the model.
        dtype: string or `keras.DTypePolicy`. The dtype of the computations
            and weights of the projections. Embeddings are float32, or float64
            if `dtype` is float64.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict with `"images"`, float tensor of shape `(batch, height,
            width, 3)` with values from -1 to 1, `"token_ids"` and
            `"padding_mask"`, int tensors of shape `(batch, length)`.

    Returns:
        A dict with `"image_embeddings"` and `"text_embeddings"`, float32
        tensors of shape `(batch, embedding_dim)` with rows of unit length.

    Example:

    ```python
    model = AlignDualEncoder.from_preset("align_b1_bert_mini")
    model.compile(optimizer=Lamb(1e-3), loss=ContrastiveLoss())
    model.fit(
        {
            "images": np.random.uniform(-1, 1, (8, 289, 289, 3)),
            "token_ids": np.random.randint(0, 100_000, (8, 64)),
            "padding_mask": np.ones((8, 64), "int32"),
        }
    )
    ```

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 4.
    """

    def __init__(
        self,
        image_encoder,
        text_encoder,
        embedding_dim=None,
        initial_temperature=1.0,
        temperature_range=(0.005, 10.0),
        temperature_form="log",
        initial_bias=None,
        image_pooling="auto",
        text_pooling="auto",
        preprocessor=None,
        dtype=None,
        **kwargs,
    ):
        if getattr(image_encoder, "data_format", None) == "channels_first":
            raise ValueError(
                "The images of a dual encoder have their channels last. Build "
                "the image encoder with data_format='channels_last'. Received: "
                f"{image_encoder.name} with data_format='channels_first'"
            )
        # === Layers ===
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_pooling = image_pooling
        self.text_pooling = text_pooling
        image_features = main_output(
            declared(image_encoder, "output"), image_pooling
        )
        text_features = main_output(
            declared(text_encoder, "output"), text_pooling
        )
        self.image_pooling_layer = Pooling(
            resolve_pooling(image_pooling, image_features, "image"),
            dtype=dtype,
            name="image_pooling",
        )
        resolved = resolve_pooling(
            text_pooling, text_features, "text", text_encoder
        )
        self.resolved_text_pooling = resolved
        self._until_end_of_text = resolved == "end_of_text"
        self.text_pooling_layer = Pooling(
            "last" if self._until_end_of_text else resolved,
            dtype=dtype,
            name="text_pooling",
        )
        image_dim = image_features.shape[-1]
        width = image_dim if embedding_dim is None else embedding_dim
        self.image_projection = None
        if width != image_dim:
            self.image_projection = layers.Dense(
                width, dtype=dtype, name="image_projection"
            )
        self.text_projection = layers.Dense(
            width, dtype=dtype, name="text_projection"
        )
        self.contrastive_head = ContrastiveHead(
            initial_temperature=initial_temperature,
            temperature_range=temperature_range,
            temperature_form=temperature_form,
            initial_bias=initial_bias,
            dtype=dtype,
            name="contrastive_head",
        )

        # === Functional Model ===
        images = keras.Input(
            shape=image_input(image_encoder).shape[1:], name="images"
        )
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
        tokens = {"token_ids": token_ids, "padding_mask": padding_mask}
        image_embeddings, text_embeddings = self.contrastive_head(
            self.image_features(images), self.text_features(tokens)
        )
        super().__init__(
            inputs={"images": images, **tokens},
            outputs={
                "image_embeddings": image_embeddings,
                "text_embeddings": text_embeddings,
            },
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.embedding_dim = width
        self.initial_temperature = initial_temperature
        self.temperature_range = tuple(temperature_range)
        self.temperature_form = temperature_form
        self.initial_bias = initial_bias
        self.preprocessor = preprocessor

    # Keras must not track the preprocessor as a layer: it has no weights, and
    # its strings must not reach a compiled step.
    @property
    def preprocessor(self):
        """The `AlignPreprocessor` for images and strings, or `None`."""
        return self.__dict__.get("_untracked_preprocessor")

    @preprocessor.setter
    def preprocessor(self, value):
        # Keras tracks every layer before it calls the setter.
        self._tracker.untrack(value)
        self.__dict__["_untracked_preprocessor"] = value

    # Nor must Keras track the unused parts of converted weights, which are
    # only needed to convert the model back.
    @property
    def carried(self):
        """The `Carried` parts of converted weights, or `None`."""
        return self.__dict__.get("_untracked_carried")

    @carried.setter
    def carried(self, value):
        self.__dict__["_untracked_carried"] = value

    @property
    def temperature(self):
        """The learned softmax temperature, a float."""
        return float(ops.convert_to_numpy(self.contrastive_head.temperature))

    # Do not run the graph that the constructor built: it ignores encoders
    # that are frozen or unfrozen later.
    def call(self, inputs, training=None, mask=None):
        """Embed a batch of pairs, see `embed`."""
        names = sorted(inputs) if isinstance(inputs, dict) else []
        if names != sorted(self.input):
            raise ValueError(
                "The model takes a dict with exactly the keys "
                f"{sorted(self.input)}. Received: "
                f"{names or type(inputs).__name__}"
            )
        _require_float(inputs["images"])
        dtypes = {name: tensor.dtype for name, tensor in self.input.items()}
        inputs = {
            name: ops.convert_to_tensor(value, dtypes.get(name))
            for name, value in inputs.items()
        }
        return self.embed(inputs, training)

    # === Towers ===

    def image_features(self, images, training=None):
        """Compute the projected, unnormalised vector of each image.

        Args:
            images: float tensor of shape `(batch, height, width, 3)`.
            training: bool. Whether to use dropout and batch statistics.

        Returns:
            A float tensor of shape `(batch, embedding_dim)`.
        """
        return self._project_image(self.image_vectors(images, training))

    def image_vectors(self, images, training=None):
        """Compute the pooled, unprojected vector of each image.

        A frozen encoder (`image_encoder.trainable = False`) runs in inference
        mode, and no gradient is computed for it.

        Args:
            images: float tensor of shape `(batch, height, width, 3)`.
            training: bool. Whether to use dropout and batch statistics.

        Returns:
            A float tensor of shape `(batch, dim)`.
        """
        _require_float(images)
        # A symbolic call only builds the graph; the encoder may be frozen or
        # unfrozen later.
        symbolic = isinstance(images, keras.KerasTensor)
        frozen = self.image_encoder_is_frozen and not symbolic
        if isinstance(declared(self.image_encoder, "input"), dict):
            images = {image_input(self.image_encoder).name: images}
        if frozen:
            training = False

        def run():
            outputs = self.image_encoder(images, training=training)
            features = main_output(outputs, self.image_pooling)
            return self.image_pooling_layer(features, mask=output_mask(outputs))

        features = rematerialize_encoder(self.image_encoder, run)
        if frozen:
            features = ops.stop_gradient(features)
        return features

    @property
    def image_encoder_is_frozen(self):
        """Whether the image encoder has no trainable variable."""
        return not trained_variables(self.image_encoder)

    def _project_image(self, vectors):
        if self.image_projection is None:
            return vectors
        return self.image_projection(vectors)

    def text_features(self, tokens, training=None):
        """Compute the projected, unnormalised vector of each text.

        A frozen encoder (`text_encoder.trainable = False`) runs in inference
        mode, and no gradient is computed for it.

        Args:
            tokens: dict with `"token_ids"` and `"padding_mask"`, int tensors
                of shape `(batch, length)`.
            training: bool. Whether to use dropout.

        Returns:
            A float tensor of shape `(batch, embedding_dim)`.
        """
        return self.text_projection(self.text_vectors(tokens, training))

    def text_vectors(self, tokens, training=None):
        """Compute the pooled, unprojected vector of each text.

        For BERT this is the last layer's vector of the `[CLS]` token, which
        the paper uses to compare words (section 8, Table 12). With
        `text_pooling="average"`, padding is left out. A frozen encoder runs
        in inference mode, see `text_features`.

        Args:
            tokens: dict with `"token_ids"` and `"padding_mask"`, int tensors
                of shape `(batch, length)`.
            training: bool. Whether to use dropout.

        Returns:
            A float tensor of shape `(batch, dim)`.
        """
        encoder = self.text_encoder
        ignores_padding = vars(type(encoder)).get("ignores_padding", False)
        # CLIP's end of text may be found among the padding.
        if ignores_padding and not self._until_end_of_text:
            longest = encoder.max_sequence_length
            tokens = without_shared_padding(tokens, longest)
        mask = tokens["padding_mask"]
        if self._until_end_of_text:
            mask = until_end_of_text(tokens["token_ids"])
        symbolic = isinstance(mask, keras.KerasTensor)
        frozen = self.text_encoder_is_frozen and not symbolic
        if frozen:
            training = False
        inputs = declared(self.text_encoder, "input")
        if isinstance(inputs, dict):
            if "segment_ids" in inputs:
                segments = ops.zeros_like(tokens["token_ids"])
                tokens = {**tokens, "segment_ids": segments}
            tokens = {name: tokens[name] for name in inputs}
        else:
            tokens = tokens["token_ids"]

        def run():
            outputs = self.text_encoder(tokens, training=training)
            features = main_output(outputs, self.text_pooling)
            return self.text_pooling_layer(features, mask=mask)

        features = rematerialize_encoder(self.text_encoder, run)
        if frozen:
            features = ops.stop_gradient(features)
        return features

    @property
    def text_encoder_is_frozen(self):
        """Whether the text encoder has no trainable variable."""
        return not trained_variables(self.text_encoder)

    def embed(self, inputs, training=None):
        """Embed a batch of pairs.

        Args:
            inputs: dict of tensors, the inputs of the model. `"images"` may
                be replaced by `"image_vectors"`, the result of
                `image_vectors`.
            training: bool. Whether to use dropout and batch statistics.

        Returns:
            A dict with `"image_embeddings"` and `"text_embeddings"`, tensors
            of shape `(batch, embedding_dim)`.
        """
        if "image_vectors" in inputs:
            features = self._project_image(inputs["image_vectors"])
        else:
            features = self.image_features(inputs["images"], training)
        tokens = {name: inputs[name] for name in ("token_ids", "padding_mask")}
        images, texts = self.contrastive_head(
            features, self.text_features(tokens, training)
        )
        return {"image_embeddings": images, "text_embeddings": texts}

    @backend.without_gradients
    def encode_image(self, images):
        """Embed images in inference mode.

        On torch no gradients flow through this method; use `image_features`
        if you need them.

        Args:
            images: float array of shape `(batch, height, width, 3)` with
                values from -1 to 1, which is used unchanged; or images for
                the preprocessor: a uint8 array of that shape, or a list of
                file paths or encoded files as bytes.

        Returns:
            A float32 tensor of shape `(batch, embedding_dim)` with rows of
            unit length.
        """
        if isinstance(images, (str, bytes, os.PathLike)):
            images = [images]
        if isinstance(images, (list, tuple)):
            images = self.require_preprocessor().image_converter.load(images)
        elif "float" not in keras.backend.standardize_dtype(images.dtype):
            images = self.require_preprocessor().image_converter(images)
        images = ops.convert_to_tensor(images)
        return self.contrastive_head.normalize(
            self.image_features(images, training=False)
        )

    @backend.without_gradients
    def encode_text(self, texts):
        """Embed texts in inference mode.

        On torch no gradients flow through this method; use `text_features` if
        you need them.

        Args:
            texts: string, list of strings, or string tensor, for the
                preprocessor; or a dict with `"token_ids"` and
                `"padding_mask"`, int arrays of shape `(batch, length)`.

        Returns:
            A float32 tensor of shape `(batch, embedding_dim)` with rows of
            unit length.
        """
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, dict):
            texts = self.require_preprocessor().tokenize(texts)
        if sorted(texts) != ["padding_mask", "token_ids"]:
            raise ValueError(
                'A dict of tokens must have exactly the keys `"token_ids"` and '
                f'`"padding_mask"`. Received: {sorted(texts)}'
            )
        tokens = {
            name: ops.cast(ops.convert_to_tensor(value), "int32")
            for name, value in texts.items()
        }
        return self.contrastive_head.normalize(
            self.text_features(tokens, training=False)
        )

    # === Saving ===

    def get_config(self):
        config = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self.own_dtype_config(),
        }
        with described_without_lora(self):
            for name in ("image_encoder", "text_encoder"):
                config[name] = layers.serialize(getattr(self, name))
        config.update(
            {
                "embedding_dim": self.embedding_dim,
                "initial_temperature": self.initial_temperature,
                "temperature_range": self.temperature_range,
                "temperature_form": self.temperature_form,
                "initial_bias": self.initial_bias,
                "image_pooling": self.image_pooling,
                "text_pooling": self.text_pooling,
            }
        )
        frozen = self.frozen_layers()
        if frozen:
            config["frozen_layers"] = frozen
        if self.preprocessor is not None:
            config["preprocessor"] = self.preprocessor_config()
        return config
