"""ALIGN in Hugging Face's layout against transformers' own `AlignModel`."""

import functools
import json

import keras
import numpy as np
import pytest

pytest.importorskip("torch", reason="The comparison needs PyTorch")
transformers = pytest.importorskip(
    "transformers", reason="The comparison needs transformers"
)
safetensors = pytest.importorskip("safetensors.numpy")

from huggingface_models import make_align
from huggingface_models import make_inputs
from huggingface_models import outputs_of

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import EfficientNetBackbone
from align_keras.cli import main
from align_keras.interop import save_huggingface
from align_keras.interop.safetensors_file import SafetensorsFiles

# What float32 rounds differs between processors: over seeds and instruction
# sets, elements of the vectors differed by up to 2e-5.
ATOL = 3e-5


def assert_equal_outputs(model, reference, inputs):
    expected = outputs_of(reference, inputs)
    outputs = {
        name: keras.ops.convert_to_numpy(value)
        for name, value in model(inputs).items()
    }
    image, text = outputs["image_embeddings"], outputs["text_embeddings"]
    # Inputs that all have nearly one vector would hide a difference.
    for rows in (image, text):
        nearest = float((rows @ rows.T).min())
        assert nearest < 0.95
    np.testing.assert_allclose(image, expected.image_embeds, atol=ATOL)
    np.testing.assert_allclose(text, expected.text_embeds, atol=ATOL)
    # Dividing by a small temperature magnifies what differs.
    logits_atol = ATOL / model.temperature
    np.testing.assert_allclose(
        text @ image.T / model.temperature,
        expected.logits_per_text,
        atol=logits_atol,
    )
    # Theirs is the mean of the two directions, ours the sum.
    loss = ContrastiveLoss(label_smoothing=0.1)(
        image, text, temperature=model.temperature
    )
    assert float(loss) / 2 == pytest.approx(
        float(expected.loss), abs=logits_atol
    )


def test_outputs_equal_transformers(converted, reference):
    assert_equal_outputs(converted, reference, make_inputs())
    assert converted.temperature == pytest.approx(0.7)
    # An image that is not square, of even and of odd sides.
    assert_equal_outputs(converted, reference, make_inputs(1, size=(48, 71)))


@pytest.mark.parametrize(
    ("vision", "text", "config", "size"),
    [
        pytest.param(
            {"width_coefficient": 1.0, "depth_coefficient": 1.0},
            {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 300},
            {"temperature_init_value": 1.0},
            96,
            id="b0",
        ),
        pytest.param(
            {
                "width_coefficient": 0.55,
                "depth_coefficient": 0.7,
                "hidden_act": "relu",
                "drop_connect_rate": 0.1,
            },
            {
                "hidden_act": "gelu_new",
                "num_attention_heads": 2,
                "num_hidden_layers": 3,
                "type_vocab_size": 3,
            },
            {"temperature_init_value": 0.04},
            64,
            id="odd",
        ),
    ],
)
def test_other_sizes(vision, text, config, size, tmp_path):
    reference = make_align(3, vision, text, **config)
    reference.save_pretrained(tmp_path)
    model = AlignDualEncoder.from_preset(str(tmp_path))
    assert model.preprocessor is None
    vocabulary = reference.config.text_config.vocab_size
    inputs = make_inputs(2, size=(size, size), vocabulary=vocabulary)
    assert_equal_outputs(model, reference, inputs)


def test_shards_give_the_same_weights(reference, converted, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = AlignDualEncoder.from_preset(str(tmp_path))
    for ours, other in zip(model.weights, converted.weights, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_towers_and_dtype_can_be_set(directory, converted):
    model = AlignDualEncoder.from_preset(
        str(directory),
        image_encoder={"batch_norm": "ghost"},
        text_encoder={"dropout": 0.3},
        temperature_form="log",
        dtype="bfloat16",
    )
    assert model.image_encoder.batch_norm == "ghost"
    assert model.text_encoder.dropout == 0.3
    assert model.temperature == pytest.approx(0.7)
    assert model.text_encoder.dtype == "bfloat16"
    fresh = AlignDualEncoder.from_preset(str(directory), load_weights=False)
    kernels = [m.text_projection.kernel for m in (fresh, converted)]
    assert np.abs(np.subtract(*map(np.asarray, kernels))).max() > 0.01


# === The way out ===


def test_round_trip_is_bit_identical(directory, reference, tmp_path, capsys):
    """In by the command, through a preset on disk, and out again."""
    preset, out = str(tmp_path / "preset"), str(tmp_path / "out")
    assert main(["convert", str(directory), preset]) == 0
    assert "AlignDualEncoder" in capsys.readouterr().out
    assert main(["convert", "--to", "huggingface", "--json", preset, out]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == out
    before, after = SafetensorsFiles(directory), SafetensorsFiles(out)
    assert before.shapes == after.shapes
    assert {n.rpartition(".")[2] for n in before.shapes} >= {
        "num_batches_tracked",
        "running_var",
    }
    for name in before.shapes:
        assert before.dtype(name) == after.dtype(name), name
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
    again, loading = transformers.AlignModel.from_pretrained(
        out, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert _differences(again.config, reference.config) == set()
    inputs = make_inputs(5)
    expected = outputs_of(reference, inputs)
    for name, value in outputs_of(again.eval(), inputs).items():
        if name.endswith("embeds") or name.startswith("logits"):
            # PyTorch rounds by where in memory a tensor begins.
            np.testing.assert_allclose(value, expected[name], atol=ATOL)


def _differences(one, other):
    """What two configurations do not share, but for how they were saved."""
    ignored = {"_name_or_path", "transformers_version", "architectures"}
    ignored |= {"dtype"}

    def plain(config):
        if not isinstance(config, dict):
            return config
        return {
            key: plain(value)
            for key, value in config.items()
            if key not in ignored
        }

    one, other = plain(one.to_dict()), plain(other.to_dict())
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


def test_our_own_model_leaves_too(converted, tmp_path):
    model = AlignDualEncoder(
        EfficientNetBackbone(0.3, 0.4, dropout=0.1, batch_norm="ghost"),
        BertTextEncoder.from_config(
            converted.text_encoder.get_config() | {"activation": "gelu_tanh"}
        ),
        initial_temperature=0.3,
    )
    for name in ("image_encoder", "text_encoder", "text_projection"):
        weights = getattr(converted, name).get_weights()
        getattr(model, name).set_weights(weights)
    assert model.carried is None
    save_huggingface(model, tmp_path / "out")
    reference, loading = transformers.AlignModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_equal_outputs(model, reference.eval(), make_inputs(6))
    assert reference.temperature.item() == pytest.approx(0.3, rel=1e-6)


@functools.cache
def small_image_encoder(kind):
    if kind == "foreign":
        photos = keras.Input((32, 32, 3), name="images")
        return keras.Model(photos, keras.layers.Conv2D(8, 3)(photos))
    settings = {
        "same": {"padding": "same"},
        "squeeze": {"squeeze_activation": "relu"},
        None: {},
    }
    return EfficientNetBackbone(0.2, 0.1, **settings[kind])


@functools.cache
def small_text_encoder(kind):
    if kind == "foreign":
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        embedded = keras.layers.Embedding(9, 8)(tokens)
        return keras.Model({"token_ids": tokens}, embedded)
    return BertTextEncoder(9, 1, 1, 8, 8, activation=kind or "gelu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embedding_dim": 8}, "image projection"),
        ({"image_pooling": "first"}, "does not average"),
        ({"text_pooling": "average"}, "first token"),
        ({"image": "same"}, "padding"),
        ({"image": "squeeze"}, "squeeze"),
        ({"image": "foreign"}, "not an `EfficientNetBackbone`"),
        (
            {"text": "foreign", "text_pooling": "first"},
            "not a `BertTextEncoder`",
        ),
        ({"text": "selu"}, "'selu'"),
    ],
)
def test_what_align_model_cannot_express_is_refused(change, reason, tmp_path):
    change = dict(change)
    image_encoder = small_image_encoder(change.pop("image", None))
    text_encoder = small_text_encoder(change.pop("text", None))
    model = AlignDualEncoder(image_encoder, text_encoder, **change)
    with pytest.raises(ValueError, match=f"cannot express.*{reason}"):
        save_huggingface(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_models_are_refused(tmp_path):
    """Their matrices are codes, which mean nothing without their scales."""
    for part in ("text_encoder", "text_projection"):
        model = AlignDualEncoder(
            EfficientNetBackbone(0.2, 0.1), BertTextEncoder(9, 1, 1, 8, 8)
        )
        getattr(model, part).quantize("int8")
        with pytest.raises(ValueError, match="quantised model cannot be writ"):
            save_huggingface(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
