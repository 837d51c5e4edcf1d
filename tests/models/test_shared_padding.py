"""Positions that are padding in all texts of a batch change no result."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras.models.pooling import LENGTH_STEP
from align_keras.models.pooling import without_shared_padding

BACKEND = keras.config.backend()
LONGEST = LENGTH_STEP
LENGTH = 3 * LONGEST + 2


def padded(batch):
    """Lengthen texts by padding."""
    missing = LENGTH - batch["token_ids"].shape[1]
    return {
        name: np.pad(rows, ((0, 0), (0, missing))) if rows.ndim == 2 else rows
        for name, rows in batch.items()
    }


def widths_of(encoder, monkeypatch):
    """Record the lengths of the texts that an encoder receives."""
    found, run = [], type(encoder).call

    def call(self, inputs, *args, **kwargs):
        found.append(inputs["token_ids"].shape[1])
        return run(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(encoder), "call", call)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.booleans(), min_size=21, max_size=21),
        min_size=1,
        max_size=4,
    )
)
def test_no_token_is_lost(masks):
    masks = np.array(masks, "int32")
    tokens = {
        "token_ids": masks * np.arange(1, 22, dtype="int32"),
        "padding_mask": masks,
    }
    kept = without_shared_padding(
        {name: ops.convert_to_tensor(rows) for name, rows in tokens.items()}
    )
    last = max(np.flatnonzero(masks.any(0)), default=0)
    expected = min(21, (last // LENGTH_STEP + 1) * LENGTH_STEP)
    if BACKEND == "jax":
        expected = 21
    for name, rows in tokens.items():
        found = ops.convert_to_numpy(kept[name])
        np.testing.assert_array_equal(found, rows[:, :expected])
        assert not rows[:, expected:].any()


STEPS = {
    "plain": {},
    "eager": {"run_eagerly": True},
    "microbatches": {"microbatch_size": 2},
    "recomputed": {"remat": True},
    "several steps at once": {"steps_per_execution": 2},
    "compiled by XLA": {"jit_compile": True},
}


NOT_ON_TORCH = ("several steps at once", "compiled by XLA")
CASES = [(way, "average") for way in STEPS] + [
    ("plain", pooling) for pooling in ("auto", "last", "end_of_text")
]


@pytest.mark.parametrize(("way", "pooling"), CASES)
def test_steps_are_the_same_as_without_padding(
    way, pooling, tiny_model, pairs, monkeypatch
):
    if BACKEND == "torch" and way in NOT_ON_TORCH:
        pytest.skip("not on torch")
    data, results = pairs(8, length=LONGEST), []
    for batch in (data, padded(data)):
        model = tiny_model(text_pooling=pooling)
        with monkeypatch.context() as patch:
            widths = widths_of(model.text_encoder, patch)
            model.compile(
                keras.optimizers.SGD(0.5), ContrastiveLoss(), **STEPS[way]
            )
            history = model.fit(
                batch, batch_size=4, epochs=2, shuffle=False, verbose=0
            ).history
            loss = model.evaluate(batch, batch_size=4, verbose=0)
            vectors = model.predict(batch, batch_size=4, verbose=0)
        results.append(
            [*history["loss"], *loss, *vectors.values(), *model.get_weights()]
        )
    # A graph has one trace for all lengths, in which the length is unknown.
    fixed = BACKEND == "jax" or way == "compiled by XLA"
    known = BACKEND == "torch" or way == "eager"
    assert set(widths) == {LENGTH if fixed else LONGEST if known else None}
    for plain, long in zip(*results, strict=True):
        np.testing.assert_allclose(long, plain, rtol=2e-4, atol=2e-5)


class BagOfWords(keras.Model):
    """Reads padding as it reads tokens."""

    def __init__(self):
        ids = keras.Input((None,), dtype="int32", name="token_ids")
        mask = keras.Input((None,), dtype="int32", name="padding_mask")
        sequence = keras.layers.Embedding(50, 8)(ids)
        super().__init__(
            {"token_ids": ids, "padding_mask": mask},
            {"pooled_output": ops.mean(sequence, axis=1)},
        )


def test_an_encoder_that_reads_padding_keeps_it(tiny_model, pairs):
    model = AlignDualEncoder(tiny_model().image_encoder, BagOfWords())
    batch = padded(pairs(4, length=LONGEST))
    tokens = {name: batch[name] for name in ("token_ids", "padding_mask")}
    table = model.text_encoder.get_weights()[0]
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.text_vectors(tokens)),
        table[batch["token_ids"]].mean(1),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_of_ones_own_has_fixed_shapes(jit_compile, tiny_model, pairs):
    """XLA could not compile a length that the data tell."""
    import tensorflow as tf

    model, data = tiny_model(), pairs(4, length=LONGEST)
    run = tf.function(
        lambda batch: model(batch)["text_embeddings"], jit_compile=jit_compile
    )
    expected = model(data)["text_embeddings"]
    np.testing.assert_allclose(run(padded(data)), expected, atol=1e-5)
