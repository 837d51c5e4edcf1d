"""What a dual encoder is saved with: frozen towers, losses, a preprocessor."""

import copy
import pickle

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import ContrastiveLoss
from align_keras import Lamb
from align_keras import PairRecall

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a red bus".split()


def build(frozen=(), preprocessor=None):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), name="images")
    features = keras.layers.Conv2D(6, 3)(images)
    features = keras.layers.BatchNormalization()(features)
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(50, 6)(tokens)
    pair = (
        keras.Model(images, features),
        keras.Model({"token_ids": tokens}, vectors),
    )
    for place in frozen:
        pair[place].trainable = False
    return AlignDualEncoder(
        *pair,
        text_pooling="average",
        initial_temperature=0.1,
        preprocessor=preprocessor,
    )


def preprocessor():
    return AlignPreprocessor(
        AlignTokenizer(VOCABULARY),
        AlignImageConverter(image_size=8),
        sequence_length=6,
    )


def trained(x, **kwargs):
    model = build(**kwargs)
    model.compile(
        Lamb(0.1, weight_decay=0.1),
        ContrastiveLoss(0.3),
        metrics=[PairRecall(2)],
        microbatch_size=2,
    )
    model.fit(x, batch_size=4, verbose=0)
    return model


def assert_same(again, model, x):
    for name, value in model.predict(x, verbose=0).items():
        found = again.predict(x, verbose=0)[name]
        np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=name)
    assert again.count_params() == model.count_params()


def test_layers_that_are_frozen_stay_so(tmp_path, tiny_model):
    """As people fine-tune: all but the last blocks of an encoder."""
    model = tiny_model()
    for layer in model.image_encoder.layers[:2]:
        layer.trainable = False
    model.text_encoder.token_embedding.trainable = False
    paths = [variable.path for variable in model.trainable_variables]
    assert len(paths) < len(model.variables)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for again in (
        keras.saving.load_model(tmp_path / "model.keras"),
        AlignDualEncoder.from_preset(tmp_path / "preset"),
        keras.models.clone_model(model),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert [v.path for v in again.trainable_variables] == paths


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
def test_a_model_with_frozen_towers_comes_back(frozen, pairs, tmp_path):
    x = pairs(4, size=8)
    model = trained(x, frozen=frozen)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(again, model, x)
    kept = [len(m.trainable_variables) for m in (model, again)]
    assert kept[0] == kept[1]
    losses = [
        m.fit(x, batch_size=4, shuffle=False, verbose=0).history["loss"]
        for m in (model, again)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    model.save_weights(tmp_path / "model.weights.h5")
    for other in ((), frozen):
        fresh = build(other)
        fresh.load_weights(tmp_path / "model.weights.h5")
        assert_same(fresh, model, x)
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    assert_same(again, model, x)


def test_copies_are_whole(pairs, tmp_path):
    """Of a copy from the config, the weights are others."""
    x = pairs(4, size=8)
    model = trained(x, preprocessor=preprocessor())
    expected = ops.convert_to_numpy(model.encode_text(["a red bus"]))
    clone = AlignDualEncoder.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    clone.compile_from_config(model.get_compile_config())
    for again in (
        clone,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert again.microbatch_size == 2
        names = [metric.name for metric in again.pair_metrics]
        assert names == ["image_to_text_recall_at_2"]
        assert_same(again, model, x)
        found = ops.convert_to_numpy(again.encode_text(["a red bus"]))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        size = again.preprocessor.image_converter.image_size
        assert size == (8, 8)
        assert again.preprocessor.sequence_length == 6
        again.fit(x, batch_size=4, verbose=0)


class Scaled(AlignDualEncoder):
    """A subclass with an argument of its own."""

    def __init__(self, image_encoder, text_encoder, factor=1.0, **kwargs):
        super().__init__(image_encoder, text_encoder, **kwargs)
        self.factor = factor

    def compute_loss(self, *args, **kwargs):
        return self.factor * super().compute_loss(*args, **kwargs)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_a_clone_is_a_model_of_the_same_class(pairs):
    """Compiled alike where the model is, with fresh weights, as of Keras."""
    x = pairs(4, size=8)
    model = trained(x, frozen=(1,), preprocessor=preprocessor())
    config = {**model.get_config(), "factor": 3.0}
    scaled = Scaled.from_config(config)
    assert not keras.models.clone_model(scaled).compiled
    scaled.compile_from_config(model.get_compile_config())
    for original, factor in ((model, 1.0), (scaled, 3.0)):
        clone = keras.models.clone_model(original)
        assert type(clone) is type(original)
        assert clone.get_config() == original.get_config()
        assert clone.get_compile_config() == original.get_compile_config()
        shared = {id(v) for v in clone.variables}
        assert shared.isdisjoint(id(v) for v in original.variables)
        kernels = [m.text_projection.get_weights()[0] for m in (clone, model)]
        assert np.abs(kernels[0] - kernels[1]).max() > 0.1
        clone.set_weights(model.get_weights())
        assert_same(clone, model, x)
        logs = clone.evaluate(x, verbose=0, return_dict=True)
        plain = model.evaluate(x, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(factor * plain["loss"], rel=1e-5)
        clone.fit(x, batch_size=4, verbose=0)


class Passing(AlignDualEncoder):
    """A subclass that passes all arguments on."""

    def __init__(self, *towers, factor=1.0, **options):
        super().__init__(*towers, **options)
        self.factor = factor


def test_a_subclass_may_pass_all_arguments_on(pairs):
    plain = build()
    options = {"text_pooling": "average", "factor": 3.0}
    model = Passing(plain.image_encoder, plain.text_encoder, **options)
    model.set_weights(plain.get_weights())
    assert model.factor == 3.0
    assert_same(model, plain, pairs(4, size=8))
    assert type(keras.models.clone_model(model)) is Passing


def test_a_clone_of_plain_graphs_pools_as_the_original(tiny_model, pairs):
    """`recursive=True` makes a graph of BERT, of which nothing is known."""
    x = pairs(4)
    model = tiny_model()
    assert model.text_pooling == "auto"

    def copy_of(layer):
        return type(layer).from_config(layer.get_config())

    clone = keras.models.clone_model(
        model, clone_function=copy_of, recursive=True
    )
    clone.set_weights(model.get_weights())
    for name, value in model.predict(x, verbose=0).items():
        found = clone.predict(x, verbose=0)[name]
        np.testing.assert_allclose(found, value, atol=1e-6)


def test_what_a_backend_compiles_is_its_own_affair():
    """A saved "auto" means what the backend that loads it makes of it."""
    model = build()
    model.compile("sgd")
    assert model.get_compile_config()["jit_compile"] == "auto"
    if keras.config.backend() == "torch":
        with pytest.raises(ValueError, match="torch.compile.*jit_compile=True"):
            model.compile("sgd", jit_compile=True)
    else:
        model.compile("sgd", jit_compile=True)
        assert model.get_compile_config()["jit_compile"] is True


def test_a_clone_has_the_encoders_that_a_function_makes(pairs):
    model = trained(pairs(4, size=8))

    def freeze(layer):
        clone = type(layer).from_config(layer.get_config())
        clone.trainable = layer is not model.image_encoder
        return clone

    clone = keras.models.clone_model(model, clone_function=freeze)
    assert clone.image_encoder_is_frozen and not clone.text_encoder_is_frozen
    fixed = {
        name: keras.Input((8, 8, 3) if name == "images" else (6,), name=name)
        for name in model.input
    }
    for options, cause in (
        ({"clone_function": lambda layer: layer}, "'contrastive_head'"),
        ({"call_function": lambda layer, *x, **k: layer(*x, **k)}, "<lambda>"),
        ({"input_tensors": fixed}, "shape=.None, 6."),
    ):
        with pytest.raises(ValueError, match=cause):
            keras.models.clone_model(model, **options)
        # What the message says in their place.
        plain = keras.Model(model.input, model.output)
        keras.models.clone_model(plain, **options)


def test_an_int8_model_keeps_its_preprocessor(pairs, tmp_path):
    x = pairs(4, size=8)
    model = build()
    # One tower alone has quantised layers of its own.
    model.text_encoder.quantize("int8")
    model.save_to_preset(tmp_path / "tower")
    assert_same(AlignDualEncoder.from_preset(str(tmp_path / "tower")), model, x)
    model = build(preprocessor=preprocessor())
    model.quantize("int8")
    assert model.preprocessor.image_converter.quantization_mode is None
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    assert_same(again, model, x)
    texts = ["a red bus", "a bus"]
    np.testing.assert_allclose(
        ops.convert_to_numpy(again.encode_text(texts)),
        ops.convert_to_numpy(model.encode_text(texts)),
        rtol=1e-6,
    )
    # What is no matrix still learns.
    again.compile("sgd")
    again.fit(x, verbose=0)


def test_keras_hub_says_that_it_leaves_the_preprocessor(tmp_path, pairs):
    model = build(preprocessor=preprocessor())
    model.save_to_preset(tmp_path / "preset")
    path = str(tmp_path / "preset")
    with pytest.warns(UserWarning, match="without its preprocessor"):
        again = keras_hub.models.Backbone.from_preset(path)
    assert_same(again, model, pairs(4, size=8))
    whole = AlignDualEncoder.from_preset(path)
    assert whole.preprocessor.tokenizer.vocabulary == VOCABULARY


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="of symbolic sizes on JAX"
)
def test_an_export_on_jax_asks_for_fixed_lengths(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="Pass an `input_signature` of fixed"):
        tiny_model().export(tmp_path / "model")
