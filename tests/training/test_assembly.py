import keras
import numpy as np
import pytest
from tiny_align import tiny_align

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras import SigmoidLoss
from align_keras import optimizers
from align_keras.training import Recipe
from align_keras.training.assembly import build_model
from align_keras.training.assembly import build_network
from align_keras.training.assembly import compile_model

FIELDS = {
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 0.01,
    "image_size": 33,
    "sequence_length": 16,
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("presets") / "trained"
    tiny_align().save_to_preset(path)
    return str(path)


def test_the_sigmoid_loss_adds_a_bias_to_a_trained_preset(preset, tmp_path):
    recipe = Recipe(loss="sigmoid", initial_temperature=0.1, **FIELDS)
    model = build_model(preset, recipe, None)
    assert float(model.contrastive_head.bias) == -10.0
    assert model.temperature == pytest.approx(0.1)
    trained = AlignDualEncoder.from_preset(preset)
    for new, old in zip(
        model.text_projection.weights,
        trained.text_projection.weights,
        strict=True,
    ):
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (new, old))
        )
    compile_model(model, recipe)
    assert isinstance(model.loss, SigmoidLoss)
    # A bias that was learned is kept.
    model.contrastive_head.bias.assign(-4.5)
    model.save_to_preset(tmp_path / "again")
    again = build_model(str(tmp_path / "again"), recipe, None)
    assert float(again.contrastive_head.bias) == -4.5
    # The other loss asks for none, and leaves one alone.
    recipe = Recipe(label_smoothing=0.3, **FIELDS)
    assert build_model(preset, recipe, None).contrastive_head.bias is None
    compile_model(again, recipe)
    assert isinstance(again.loss, ContrastiveLoss)
    assert again.loss.label_smoothing == 0.3


@pytest.mark.parametrize("name", ["lamb", "adam", "adamw", "sgd"])
def test_optimizers_follow_the_recipe(preset, name):
    model = AlignDualEncoder.from_preset(preset)
    fields = {**FIELDS, "optimizer": name, "weight_decay": 0.2}
    compile_model(model, Recipe(clip_norm=0.5, ema=0.9, **fields))
    config = model.optimizer.get_config()
    assert type(model.optimizer) is getattr(
        optimizers, {"adamw": "AdamW", "sgd": "SGD"}.get(name, name.title())
    )
    assert config["global_clipnorm"] == 0.5
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.9)
    decay = 0.2 if name in ("lamb", "adamw") else None
    assert config["weight_decay"] == decay
    compile_model(model, Recipe(**fields))
    config = model.optimizer.get_config()
    assert config["global_clipnorm"] is None and not config["use_ema"]


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    """The table of a text encoder that does not tell its vocabulary."""
    images = keras.Input((33, 33, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    model = AlignDualEncoder(
        keras.Model(images, keras.layers.Conv2D(4, 3)(images)),
        keras.Model(
            {"token_ids": tokens}, keras.layers.Embedding(50, 8)(tokens)
        ),
        text_pooling="first",
        embedding_dim=4,
    )
    path = str(tmp_path / "preset")
    model.save_to_preset(path)
    recipe = Recipe(**FIELDS)
    assert build_network(path, recipe, 50).text_encoder is not None
    for size in (30, 0, -5):
        with pytest.raises(
            ValueError, match=f"50 tokens.*vocabulary of {size}"
        ):
            build_network(path, recipe, size)
