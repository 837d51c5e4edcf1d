import keras
from keras import layers
from keras import ops
from keras_hub.layers import PositionEmbedding
from keras_hub.layers import TransformerEncoder
from keras_hub.models import Backbone

from align_keras.keras_hub_internals import transform_some
from align_keras.models.initializers import SmallNormal
from align_keras.models.lora import LowRank
from align_keras.models.presets import PresetMixin
from align_keras.models.rematerialization import rematerialize


@keras.saving.register_keras_serializable(package="align_keras")
def gelu_tanh(x):
    """Compute the tanh approximation of GELU, as the original BERT code did."""
    return ops.gelu(x, approximate=True)


def _activation(name):
    return gelu_tanh if name == "gelu_tanh" else name


@keras.saving.register_keras_serializable(package="align_keras")
class BertTextEncoder(PresetMixin, LowRank, Backbone):
    """A BERT encoder that represents a text by its first token.

    This is BERT without the pooler: ALIGN uses the last layer's vector of the
    `[CLS]` token directly. There are presets for the sizes tiny, mini, small,
    medium, base and large, `"bert_tiny"` to `"bert_large"`.

    Args:
        vocabulary_size: int. Number of tokens. The paper uses 100,000.
        num_layers: int. Number of transformer layers.
        num_heads: int. Number of attention heads in each layer.
        hidden_dim: int. Width of the token vectors. Must be a multiple of
            `num_heads`.
        intermediate_dim: int. Width of the feed-forward layers.
        dropout: float. Dropout rate. Defaults to `0.1`.
        max_sequence_length: int. Number of position vectors, which limits the
            number of tokens in a text. Defaults to `512`.
        num_segments: int. Number of segment vectors; a single text uses only
            the first. Defaults to `2`.
        activation: string. Activation of the feed-forward layers. Defaults
            to `"gelu"`, the exact form; with the tanh form, `"gelu_tanh"`,
            outputs differ by up to 3e-4.
        dtype: string or `keras.DTypePolicy`. The dtype of computations and
            weights.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict with `"token_ids"`, int tensor of shape `(batch,
            length)`, and `"padding_mask"` of the same shape, 1 for tokens and
            0 for padding.

    Returns:
        A dict with `"sequence_output"`, float tensor of shape `(batch,
        length, hidden_dim)`, and `"pooled_output"`, the first token's vector,
        of shape `(batch, hidden_dim)`.

    Example:

    ```python
    encoder = BertTextEncoder.from_preset("bert_mini")
    encoder(
        {
            "token_ids": np.ones((1, 64), "int32"),
            "padding_mask": np.ones((1, 64), "int32"),
        }
    )
    ```

    Reference:
        - [Devlin et al., 2019](https://arxiv.org/abs/1810.04805)
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 4.1.
    """

    # See `rematerialize_encoder`.
    rematerializes_blocks = True
    # See `without_shared_padding`. A subclass must say so for itself.
    ignores_padding = True

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        max_sequence_length=512,
        num_segments=2,
        activation="gelu",
        dtype=None,
        **kwargs,
    ):
        if hidden_dim % num_heads:
            raise ValueError(
                "`hidden_dim` must be a multiple of `num_heads`. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        if num_layers < 1:
            raise ValueError(
                "`num_layers` must be at least 1. Received: "
                f"num_layers={num_layers}"
            )
        # === Layers ===
        self.token_embedding = layers.Embedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=SmallNormal(),
            dtype=dtype,
            name="token_embedding",
        )
        self.position_embedding = PositionEmbedding(
            max_sequence_length,
            initializer=SmallNormal(),
            dtype=dtype,
            name="position_embedding",
        )
        self.segment_embedding = layers.Embedding(
            num_segments,
            hidden_dim,
            embeddings_initializer=SmallNormal(),
            dtype=dtype,
            name="segment_embedding",
        )
        self.embeddings_norm = layers.LayerNormalization(
            epsilon=1e-12, dtype=dtype, name="embeddings_norm"
        )
        self.embeddings_dropout = layers.Dropout(
            dropout, dtype=dtype, name="embeddings_dropout"
        )
        self.transformer_layers = [
            BertLayer(
                intermediate_dim=intermediate_dim,
                num_heads=num_heads,
                activation=_activation(activation),
                dropout=dropout,
                layer_norm_epsilon=1e-12,
                kernel_initializer=SmallNormal(),
                dtype=dtype,
                name=f"transformer_layer_{i}",
            )
            for i in range(num_layers)
        ]

        # === Functional Model ===
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
        tokens = self.token_embedding(token_ids)
        x = tokens + self.position_embedding(tokens)
        x = x + self.segment_embedding(ops.zeros_like(token_ids))
        x = self.embeddings_dropout(self.embeddings_norm(x))
        *layers_before, last = self.transformer_layers
        for layer in layers_before:
            x = layer(x, padding_mask=padding_mask)
        sequence = last(x, padding_mask=padding_mask)
        first = last(x, padding_mask=padding_mask, outputs=sequence)
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask},
            outputs={"sequence_output": sequence, "pooled_output": first},
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.activation = activation

    def count_macs(self, sequence_length):
        """Count the multiply-accumulate operations for one text.

        Args:
            sequence_length: int. Number of tokens, padding included.

        Returns:
            int. The number of multiply-accumulate operations in the matrix
            products, computing the vectors of all tokens. If only the pooled
            output is needed, the last layer takes fewer.
        """
        per_token = 4 * self.hidden_dim**2
        per_token += 2 * self.hidden_dim * self.intermediate_dim
        per_token += 2 * self.hidden_dim * sequence_length
        return self.num_layers * sequence_length * per_token

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "vocabulary_size": self.vocabulary_size,
                "num_layers": self.num_layers,
                "num_heads": self.num_heads,
                "hidden_dim": self.hidden_dim,
                "intermediate_dim": self.intermediate_dim,
                "dropout": self.dropout,
                "max_sequence_length": self.max_sequence_length,
                "num_segments": self.num_segments,
                "activation": self.activation,
            }
        )
        return config


@keras.saving.register_keras_serializable(package="align_keras")
class BertLayer(TransformerEncoder):
    """A transformer layer that supports rematerialisation.

    Called with `outputs`, the result of an earlier call on the same `inputs`,
    it returns only the first token's vector, of shape `(batch, hidden_dim)`.
    In inference it computes that vector separately, so that a graph or
    compiler can drop the other tokens if nothing else needs them. In training
    that would save only a hundredth of a step, and dropout would draw another
    mask.
    """

    def call(self, inputs, padding_mask=None, outputs=None, training=None):
        def run(inputs):
            return super(BertLayer, self).call(
                inputs, padding_mask=padding_mask, training=training
            )

        if outputs is None:
            return rematerialize(self, run, inputs)
        if training:
            return outputs[:, 0]
        return transform_some(self, inputs[:, :1], inputs, padding_mask)[:, 0]
