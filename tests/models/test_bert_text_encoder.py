import keras
import numpy as np
import pytest
from keras import ops
from keras_hub.models import BertBackbone

from align_keras import BertTextEncoder

# Counting needs no second backend, and JAX is slow to trace large networks.
once = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="Sizes do not depend on the backend",
)

# Layers, width, millions of parameters with 100,000 tokens, billions of
# multiply-accumulates of a text of 64 tokens.
SIZES = {
    "tiny": (2, 128, 13.3, 0.03),
    "mini": (4, 256, 28.9, 0.21),
    "small": (4, 512, 64.1, 0.82),
    "medium": (8, 512, 76.7, 1.64),
    "base": (12, 768, 162.3, 5.51),
    "large": (24, 1024, 405.2, 19.53),
}


@once
@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_published(size):
    num_layers, hidden_dim, parameters, gmacs = SIZES[size]
    with keras.StatelessScope():
        model = BertTextEncoder(
            100_000, num_layers, hidden_dim // 64, hidden_dim, 4 * hidden_dim
        )
    count = sum(int(np.prod(v.shape)) for v in model.variables)
    assert count / 1e6 == pytest.approx(parameters, abs=0.05)
    assert model.count_macs(64) / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_equals_kerashubs_bert_with_the_same_activation():
    rng = np.random.default_rng(0)
    ours = BertTextEncoder(40, 2, 2, 32, 64, activation="tanh")
    theirs = BertBackbone(40, 2, 2, 32, 64)
    for layer in theirs.transformer_layers:
        layer._feedforward_intermediate_dense.activation = keras.ops.tanh
    names = (
        ("token_embedding", "token_embedding"),
        ("position_embedding", "position_embedding"),
        ("segment_embedding", "segment_embedding"),
        ("embeddings_norm", "embeddings_layer_norm"),
        ("transformer_layer_0", "transformer_layer_0"),
        ("transformer_layer_1", "transformer_layer_1"),
    )
    for mine, other in names:
        values = [
            rng.normal(0, 0.3, w.shape) for w in theirs.get_layer(other).weights
        ]
        theirs.get_layer(other).set_weights(values)
        ours.get_layer(mine).set_weights(values)
    mask = np.array([[1] * 6, [1, 1, 1, 0, 0, 0]])
    tokens = rng.integers(0, 40, (2, 6)) * mask
    expected = theirs(
        {
            "token_ids": tokens,
            "padding_mask": mask,
            "segment_ids": np.zeros_like(tokens),
        }
    )["sequence_output"]
    got = ours({"token_ids": tokens, "padding_mask": mask})
    expected = ops.convert_to_numpy(expected)
    np.testing.assert_allclose(
        ops.convert_to_numpy(got["sequence_output"])[mask == 1],
        expected[mask == 1],
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(got["pooled_output"]),
        expected[:, 0],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="XLA counts what is computed"
)
def test_the_first_token_alone_takes_less():
    length, dim, wide = 16, 128, 512
    model = BertTextEncoder(40, 2, 2, dim, wide)
    tokens = np.ones((1, length), "int32")

    def count(name):
        import jax

        def run(token_ids, padding_mask):
            inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
            return model(inputs)[name]

        compiled = jax.jit(run).lower(tokens, tokens).compile()
        return compiled.cost_analysis()["flops"]

    # Of the last layer, 15 of 16 tokens need keys and values alone.
    per_token = 2 * dim**2 + 2 * dim * wide + 2 * dim * length
    saved = 2 * (length - 1) * per_token
    found = count("sequence_output") - count("pooled_output")
    # Normalisations, activations and softmax are more.
    assert saved < found < 1.15 * saved


def test_default_activation_is_the_exact_gelu():
    model = BertTextEncoder(10, 1, 2, 8, 16)
    dense = model.transformer_layers[0]._feedforward_intermediate_dense
    x = np.linspace(-3, 3, 7).astype("float32")
    expected = ops.convert_to_numpy(ops.gelu(x, approximate=False))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(dense.activation(x)), expected
    )


def test_in_training_dropout_falls_alike_in_both_outputs():
    model = BertTextEncoder(40, 2, 2, 16, 32, dropout=0.5)
    tokens = np.array([[2, 7, 3, 5]])
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    one, other = (model(inputs, training=True) for _ in range(2))
    pooled, sequence = map(
        ops.convert_to_numpy, (one["pooled_output"], one["sequence_output"])
    )
    np.testing.assert_array_equal(pooled, sequence[:, 0])
    # There is dropout at all.
    again = ops.convert_to_numpy(other["pooled_output"])
    assert np.abs(again - pooled).max() > 0.01


def test_refuses_an_encoder_without_layers():
    with pytest.raises(ValueError, match="at least 1.*num_layers=0"):
        BertTextEncoder(10, 0, 2, 8, 16)


def test_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="hidden_dim=10, num_heads=3"):
        BertTextEncoder(10, 1, 3, 10, 16)
