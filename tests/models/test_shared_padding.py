"""Positions that are padding in all texts of a batch change no result."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras.models.lora import add_lora
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
    ),
    st.sampled_from([20, 21, 512]),
)
def test_no_token_is_lost(masks, longest):
    masks = np.array(masks, "int32")
    tokens = {
        "token_ids": masks * np.arange(1, 22, dtype="int32"),
        "padding_mask": masks,
    }
    kept = without_shared_padding(
        {name: ops.convert_to_tensor(rows) for name, rows in tokens.items()},
        longest,
    )
    last = max(np.flatnonzero(masks.any(0)), default=0)
    expected = min(21, (last // LENGTH_STEP + 1) * LENGTH_STEP)
    if BACKEND == "jax" or longest < 21 or not masks.any(1).all():
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
    "low-rank updates": {},
    "frozen texts": {},
}
PREPARED = {
    "low-rank updates": lambda model: add_lora(model, 2),
    "frozen texts": lambda model: setattr(
        model.text_encoder, "trainable", False
    ),
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
        PREPARED.get(way, lambda model: None)(model)
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
    fixed = BACKEND == "jax" or pooling == "end_of_text" or "XLA" in way
    known = BACKEND == "torch" or way == "eager"
    assert set(widths) == {LENGTH if fixed else LONGEST if known else None}
    for plain, long in zip(*results, strict=True):
        np.testing.assert_allclose(long, plain, rtol=2e-4, atol=2e-5)


@pytest.mark.skipif(BACKEND == "jax", reason="texts keep their length")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_towers_leave_padding_out(
    mode, tiny_model, pairs, monkeypatch
):
    model, data = tiny_model(), pairs(4, length=LONGEST)
    model.text_encoder.quantize(mode)
    names = ("token_ids", "padding_mask")
    batches = ({name: b[name] for name in names} for b in (data, padded(data)))
    widths = widths_of(model.text_encoder, monkeypatch)
    plain, long = (
        ops.convert_to_numpy(model.encode_text(batch)) for batch in batches
    )
    assert widths == [LONGEST, LONGEST]
    np.testing.assert_allclose(long, plain, atol=1e-6)


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


class OwnEncoder(BertTextEncoder):
    """A user's encoder, which may do anything with padding."""


@pytest.mark.parametrize(
    "encoder", [BagOfWords, lambda: OwnEncoder(50, 1, 2, 16, 32)]
)
def test_an_encoder_that_may_read_padding_keeps_it(
    encoder, tiny_model, pairs, monkeypatch
):
    model = AlignDualEncoder(tiny_model().image_encoder, encoder())
    batch = padded(pairs(4, length=LONGEST))
    tokens = {name: batch[name] for name in ("token_ids", "padding_mask")}
    widths = widths_of(model.text_encoder, monkeypatch)
    model.encode_text(tokens)
    assert widths == [LENGTH]


@pytest.mark.parametrize("pooling", ["auto", "average", "last", "end_of_text"])
def test_odd_texts_have_the_vectors_that_they_have_alone(
    pooling, tiny_model, pairs
):
    """Texts without tokens, and ids behind the last token."""
    model = tiny_model(text_pooling=pooling)
    batch = padded(pairs(4, length=LONGEST))
    tokens = {name: batch[name] for name in ("token_ids", "padding_mask")}
    tokens["token_ids"][:, -1] = 49
    tokens["padding_mask"][1] = 0
    # Beside a text of all places, nothing is cut off.
    full = {
        name: np.concatenate([rows, np.ones_like(rows[:1])])
        for name, rows in tokens.items()
    }
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.encode_text(tokens)),
        ops.convert_to_numpy(model.encode_text(full))[:4],
        rtol=1e-4,
        atol=1e-5,
    )


def test_shapes_that_do_not_fit_are_still_refused(tiny_model, pairs):
    model = tiny_model()
    batch = padded(pairs(2, length=LONGEST))
    ids, mask = batch["token_ids"], batch["padding_mask"]
    with pytest.raises(Exception, match="(?i)shape|size"):
        model.encode_text({"token_ids": ids, "padding_mask": mask[:, :20]})
    many = {
        name: np.pad(rows, ((0, 0), (0, 512)))
        for name, rows in (("token_ids", ids), ("padding_mask", mask))
    }
    with pytest.raises(Exception, match="(?i)shape|size|length|dim"):
        model.encode_text(many)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
def test_a_graph_of_ones_own_has_fixed_shapes(tiny_model, pairs, monkeypatch):
    """It may be meant for a TPU, which cannot run any other."""
    import tensorflow as tf

    model, data = tiny_model(), pairs(4, length=LONGEST)
    expected = model(data)["text_embeddings"]
    widths = widths_of(model.text_encoder, monkeypatch)
    run = tf.function(lambda batch: model(batch)["text_embeddings"])
    np.testing.assert_allclose(run(padded(data)), expected, atol=1e-5)
    assert widths == [LENGTH]


@pytest.mark.skipif(BACKEND != "torch", reason="torch.export")
def test_torch_exports_a_text_tower(tiny_model, pairs):
    import torch

    model, batch = tiny_model(), padded(pairs(4, length=LONGEST))
    tokens = {
        name: torch.from_numpy(batch[name])
        for name in ("token_ids", "padding_mask")
    }

    class Tower(torch.nn.Module):
        def forward(self, tokens):
            return model.text_features(tokens, training=False)

    exported = torch.export.export(Tower(), (tokens,), strict=False).module()
    np.testing.assert_allclose(
        exported(tokens).detach().numpy(),
        model.text_features(tokens, training=False).detach().numpy(),
        atol=1e-5,
    )
