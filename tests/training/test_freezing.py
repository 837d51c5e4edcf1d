"""What is frozen, at which rate each block learns, and low-rank updates."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.models.lora import add_lora
from align_keras.models.lora import lora_layers
from align_keras.models.lora import lora_variables
from align_keras.optimizers import AdamW
from align_keras.training import Recipe
from align_keras.training.assembly import hold_still
from align_keras.training.freezing import freeze
from align_keras.training.freezing import freeze_statistics
from align_keras.training.freezing import named_variables
from align_keras.training.layer_decay import rate_multipliers
from align_keras.training.layer_decay import tower_levels


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    model = AlignDualEncoder(
        EfficientNetBackbone(0.2, 0.2, dropout=0.5),
        BertTextEncoder(40, 3, 2, 16, 32, dropout=0.5),
        embedding_dim=12,
    )
    # Fresh vectors of tokens are so small that all texts are nearly alike.
    table = np.random.default_rng(0).normal(size=(40, 16))
    model.text_encoder.token_embedding.embeddings.assign(table)
    return model


def inputs(count=4):
    rng = np.random.default_rng(1)
    return {
        "images": rng.uniform(-1, 1, (count, 32, 32, 3)).astype("float32"),
        "token_ids": rng.integers(5, 40, (count, 6)).astype("int32"),
        "padding_mask": np.ones((count, 6), "int32"),
    }


def snapshot(model):
    return {
        path: ops.convert_to_numpy(v)
        for path, v in named_variables(model)
        if "seed" not in path
    }


def step(model, optimizer=None):
    """Train for two steps; the paths whose values have changed."""
    # Tracing the network takes longer than running it twice.
    optimizer = optimizer or keras.optimizers.SGD(0.5)
    model.compile(optimizer, run_eagerly=True)
    before = snapshot(model)
    for _ in range(2):
        model.train_on_batch(inputs())
    after = snapshot(model)
    return {p for p in after if not np.array_equal(after[p], before[p])}


def test_a_frozen_text_encoder_runs_as_in_inference(model):
    freeze(model, "text")
    assert model.text_encoder_is_frozen and not model.image_encoder_is_frozen
    changed = step(model)
    assert "text_projection/kernel" in changed
    assert not any(path.startswith("text_encoder/") for path in changed)
    # Dropout of one half would show.
    tokens = {k: v for k, v in inputs().items() if k != "images"}
    first, second = (
        ops.convert_to_numpy(model.text_features(tokens, training=training))
        for training in (True, False)
    )
    np.testing.assert_array_equal(first, second)


def test_patterns_freeze_what_they_match_and_nothing_else(model):
    patterns = ["image", r"text_encoder/transformer_layer_[01]/", "table$"]
    patterns[2] = "token_embedding"
    freeze(model, patterns)
    changed = step(model)
    frozen = {
        path
        for path in snapshot(model)
        if path.startswith(
            (
                "image_encoder/",
                "text_encoder/transformer_layer_0/",
                "text_encoder/transformer_layer_1/",
                "text_encoder/token_embedding/",
            )
        )
    }
    assert len(frozen) > 50 and not changed & frozen
    # All that is left learns, but a key's bias, which a softmax ignores.
    still = {p for p in snapshot(model) if p not in changed | frozen}
    assert all("key/bias" in path for path in still), still


def test_frozen_blocks_keep_their_statistics(model):
    freeze(model, "stage[1-4]_")
    changed = step(model)
    blocks = {p for p in snapshot(model) if "/stage" in p}
    for path in blocks:
        stage = int(path.partition("/stage")[2][0])
        if path.endswith(("moving_mean", "moving_variance", "gamma")):
            assert (path in changed) == (stage > 4), path


def test_a_pattern_that_matches_nothing_is_refused_with_near_names(model):
    with pytest.raises(ValueError) as caught:
        freeze(model, ["image", "transformer_layr_1"])
    message = str(caught.value)
    assert "'transformer_layr_1'" in message and "\n" not in message
    assert "`transformer_layer_1`" in message
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(model, ["."])


def test_statistics_that_are_frozen(model):
    count = freeze_statistics(model)
    kind = keras.layers.BatchNormalization
    layers = [la for la in model._flatten_layers() if isinstance(la, kind)]
    assert count == len(layers) > 10
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    norms = {p for p in snapshot(model) if "_bn/" in p and p.endswith(names)}
    assert len(norms) == 4 * count
    changed = step(model)
    assert not changed & norms
    assert "image_encoder/stem_conv/kernel" in changed


def test_levels_of_towers(model):
    levels = tower_levels(model.image_encoder)
    names = [[layer.name for layer in level] for level in levels]
    assert names[0] == ["stem_conv", "stem_bn"] and len(names) == 8
    for number, level in enumerate(names[1:], start=1):
        assert all(n.startswith(f"stage{number}_block") for n in level)
    levels = tower_levels(model.text_encoder)
    names = [sorted(layer.name for layer in level) for level in levels]
    assert names == [
        [
            "embeddings_norm",
            "position_embedding",
            "segment_embedding",
            "token_embedding",
        ],
        ["transformer_layer_0"],
        ["transformer_layer_1"],
        ["transformer_layer_2"],
    ]


def test_levels_of_a_flat_network():
    application = keras.applications.EfficientNetB0(False, weights=None)
    names = [
        [layer.name for layer in level] for level in tower_levels(application)
    ]
    assert "stem_conv" in names[0] and names[-1] == ["top_conv", "top_bn"]
    assert len(names) == 9
    for number, level in enumerate(names[1:-1], start=1):
        assert all(name.startswith(f"block{number}") for name in level)
    assert "block2b_project_bn" in names[2]


def test_rates_fall_from_the_head_to_the_first_layer(model):
    paths = [p for p, v in named_variables(model) if v.trainable]
    got = dict(zip(paths, rate_multipliers(model, 0.5), strict=True))
    expected = {
        "contrastive_head/log_temperature": 1.0,
        "text_projection/kernel": 1.0,
        "image_projection/bias": 1.0,
        "text_encoder/token_embedding/embeddings": 0.5**4,
        "text_encoder/embeddings_norm/gamma": 0.5**4,
        "image_encoder/stem_bn/beta": 0.5**8,
    }
    assert {path: got[path] for path in expected} == expected
    for path, factor in got.items():
        if "transformer_layer_" in path:
            height = 3 - int(path.partition("layer_")[2][0])
            assert factor == 0.5**height
        if "/stage" in path:
            assert factor == 0.5 ** (8 - int(path.partition("/stage")[2][0]))


def test_a_step_moves_each_block_at_its_own_rate(model):
    """The first step of Adam is as long as the rate, whatever the gradient."""
    factors = rate_multipliers(model, 0.5)
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    optimizer = AdamW(
        1e-3, weight_decay=0.0, epsilon=1e-15, rate_multipliers=factors
    )
    model.compile(optimizer, run_eagerly=True)
    model.train_on_batch(inputs())
    for variable, value, factor in zip(
        model.trainable_variables, before, factors, strict=True
    ):
        moved = np.abs(ops.convert_to_numpy(variable) - value).max()
        # Normalisation hides some of the others from the loss.
        if variable.path.endswith(("kernel", "embeddings")):
            assert moved == pytest.approx(1e-3 * factor, rel=0.02), variable


def test_low_rank_updates(model, tmp_path):
    """What is trained, and that it is the product of two matrices."""
    frozen = snapshot(model)
    add_lora(model, 3)
    trained = [p for p, v in named_variables(model) if v.trainable]
    outside = ("image_projection/", "text_projection/", "contrastive_head/")
    assert all("/lora_" in p or p.startswith(outside) for p in trained)
    # Four of attention and two more in each of 3 layers, and two tables; the
    # table of two segments is narrower than the rank.
    text = [p for p in trained if p.startswith("text_encoder/")]
    assert len(text) == 2 * (3 * 6 + 1)
    assert any(p.startswith("image_encoder/stage") for p in trained)
    outputs = model.predict(inputs(), verbose=0)
    # The first factor moves once the second has.
    changed = step(model, keras.optimizers.Adam(0.01, epsilon=1e-15))
    assert changed == set(trained)
    for path, value in snapshot(model).items():
        if path in frozen and not path.startswith(outside):
            np.testing.assert_array_equal(value, frozen[path])
    learned = model.predict(inputs(), verbose=0)
    for name in outputs:
        assert np.abs(outputs[name] - learned[name]).max() > 1e-3
    _check_kernels(model, frozen)

    kept = snapshot(model)
    model.save_to_preset(str(tmp_path / "merged"))
    for path, value in snapshot(model).items():
        np.testing.assert_array_equal(value, kept[path])
    assert len(lora_layers(model)) == len(lora_variables(model)) // 2
    plain = AlignDualEncoder.from_preset(str(tmp_path / "merged"))
    assert not lora_layers(plain)
    again = plain.predict(inputs(), verbose=0)
    for name in learned:
        np.testing.assert_allclose(again[name], learned[name], atol=2e-6)


def _check_kernels(model, frozen):
    """Compare the weight in use with one that NumPy puts together."""
    layer = model.text_encoder.transformer_layers[1]._feedforward_output_dense
    first, second = (
        ops.convert_to_numpy(v)
        for v in (layer.lora_kernel_a, layer.lora_kernel_b)
    )
    assert first.shape[1] == second.shape[0] == 3
    path = next(p for p, v in named_variables(model) if v is layer._kernel)
    expected = frozen[path] + first @ second
    assert np.abs(first @ second).max() > 1e-4
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.kernel), expected, atol=1e-6
    )


def test_low_rank_updates_of_one_tower(model):
    fields = {"steps": 1, "batch_size": 4, "learning_rate": 0.1}
    hold_still(model, Recipe(freeze="image", lora_rank=2, **fields))
    assert model.image_encoder_is_frozen and not model.text_encoder_is_frozen
    assert all(
        layer in model.text_encoder._flatten_layers()
        for layer in lora_layers(model)
    )


def test_updates_that_fit_nowhere(model):
    with pytest.raises(ValueError, match="lora_rank=4000"):
        add_lora(model, 4000)
