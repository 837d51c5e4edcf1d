"""Gradients in microbatches and with rematerialised blocks, on one device."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import backend
from align_keras.models import gradients
from align_keras.models.mbconv_block import MBConvBlock

BACKEND = keras.config.backend()


@pytest.fixture(scope="module")
def make_model():
    """A model with dropout, drop-connect and batch normalisation."""

    def make(**kwargs):
        keras.utils.set_random_seed(0)
        images = keras.Input((8, 8, 3))
        x = MBConvBlock(3, 6, 3, 2, 2)(images)
        x = MBConvBlock(6, 6, 3, 1, 2, residual=True, dropout=0.5)(x)
        model = AlignDualEncoder(
            keras.Model(images, x),
            BertTextEncoder(50, 1, 2, 16, 32, dropout=0.5),
            embedding_dim=8,
            initial_temperature=0.1,
        )
        for weight in model.trainable_variables:
            if weight.path.endswith(("embeddings", "kernel")):
                weight.assign(weight * 3.0)
        model.compile(keras.optimizers.SGD(0.1), ContrastiveLoss(0.1), **kwargs)
        return model

    return make


def inputs_of(rows):
    rng = np.random.default_rng(0)
    return {
        "images": ops.convert_to_tensor(
            rng.normal(size=(rows, 8, 8, 3)).astype("float32")
        ),
        "token_ids": ops.convert_to_tensor(
            rng.integers(5, 50, (rows, 6)).astype("int32")
        ),
        "padding_mask": ops.ones((rows, 6), "int32"),
    }


def start_from_one_seed():
    """On torch, dropout without a seed is no function of the variables."""
    if BACKEND == "torch":
        import torch

        torch.manual_seed(0)


def numbers(tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def values_of(model):
    return (
        backend.values(model.trainable_variables),
        backend.values(model.non_trainable_variables),
    )


def step_of(model, inputs):
    start_from_one_seed()
    _, step = model.take_gradients(inputs, *values_of(model), lambda loss: loss)
    return step


def assert_close(ours, theirs, rtol=1e-5):
    scale = max(np.abs(value).max() for value in theirs)
    assert scale > 1e-3
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=rtol, atol=rtol * scale)


def in_sequence(model, inputs, size):
    """The same with all microbatches under one tape, in plain Python."""
    rows = len(inputs["images"])
    parts = [
        {name: value[i : i + size] for name, value in inputs.items()}
        for i in range(0, rows, size)
    ]
    variables = model.non_trainable_variables
    parameters, state = values_of(model)

    start_from_one_seed()

    def objective(parameters):
        embeddings, states, seeds = [], [], state
        for part in parts:
            before = [
                drawn if "seed" in variable.path else value
                for variable, value, drawn in zip(
                    variables, state, seeds, strict=True
                )
            ]
            mapping = [
                *zip(model.trainable_variables, parameters, strict=True),
                *zip(variables, before, strict=True),
            ]
            with keras.StatelessScope(mapping) as scope:
                embeddings.append(model.embed(part, training=True))
            seeds = [scope.get_current_value(v) for v in variables]
            states.append(seeds)
        mapping = zip(model.trainable_variables, parameters, strict=True)
        with keras.StatelessScope(mapping):
            loss = model.loss(
                *(
                    ops.concatenate([e[name] for e in embeddings])
                    for name in gradients.EMBEDDINGS
                ),
                temperature=model.contrastive_head.temperature,
            )
        return loss, states

    loss, states, found = backend.value_and_gradients(objective, parameters)
    after = [
        values[-1] if "seed" in variable.path else sum(values) / len(values)
        for variable, values in zip(
            variables, zip(*states, strict=True), strict=True
        )
    ]
    return loss, found, after


def test_microbatches_replay_their_dropout(make_model):
    """Loss, gradients, statistics and seeds of one tape over all of them."""
    inputs = inputs_of(8)
    model = make_model(microbatch_size=2)
    step = step_of(model, inputs)
    loss, expected, state = in_sequence(model, inputs, 2)
    np.testing.assert_allclose(float(step.loss), float(loss), rtol=1e-5)
    assert_close(numbers(step.gradients), numbers(expected))
    assert_close(numbers(step.state), numbers(state))
    # Without the replay, gradients would be those of other masks.
    seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
    assert seeds
    seeds[0].assign(seeds[0] + 1)
    other = numbers(step_of(model, inputs).gradients)
    differences = [
        np.abs(a - b).max()
        for a, b in zip(other, numbers(expected), strict=True)
    ]
    assert max(differences) > 1e-3


@pytest.mark.parametrize(
    "size", [pytest.param(None, marks=pytest.mark.thorough), 4]
)
def test_rematerialised_blocks_change_nothing(size, make_model):
    """The same masks of dropout, and statistics that moved once."""
    inputs = inputs_of(8)
    model = make_model(microbatch_size=size)
    expected = step_of(model, inputs)
    model.remat = True
    step = step_of(model, inputs)
    assert_close(numbers(step.gradients), numbers(expected.gradients))
    assert_close(numbers(step.state), numbers(expected.state))


def operations(model, inputs):
    """Names of the operations of a step, and of the functions it calls."""
    if BACKEND == "jax":
        import jax

        def step(inputs, parameters, state):
            found = model.take_gradients(
                inputs, parameters, state, lambda loss: loss
            )[1]
            return found.loss, found.gradients, found.state

        text = str(jax.make_jaxpr(step)(inputs, *values_of(model)))
        return [word.split("[")[0] for word in text.split()]
    if BACKEND == "torch":
        from torch.utils._python_dispatch import TorchDispatchMode

        found = []

        class Recorder(TorchDispatchMode):
            def __torch_dispatch__(
                self, operation, types, args=(), kwargs=None
            ):
                found.append(str(operation))
                return operation(*args, **(kwargs or {}))

        with Recorder():
            step_of(model, inputs)
        return found
    import tensorflow as tf

    def step(inputs):
        found = step_of(model, inputs)
        return found.loss, found.gradients

    graph = (
        tf.function(step, autograph=False)
        .get_concrete_function(inputs)
        .graph.as_graph_def()
    )
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes += function.node_def
    return [node.op for node in nodes]


CONVOLUTION = {
    "tensorflow": "Conv2D",
    "jax": "conv_general_dilated",
    "torch": "aten.convolution.default",
}[BACKEND]


def test_rematerialisation_computes_forward_twice(make_model):
    model, inputs = make_model(), inputs_of(4)
    before = operations(model, inputs).count(CONVOLUTION)
    model.remat = True
    after = operations(model, inputs).count(CONVOLUTION)
    assert after > before > 0


@pytest.mark.skipif(BACKEND == "torch", reason="has no programs")
def test_the_program_does_not_grow_with_the_batch(make_model):
    model = make_model(microbatch_size=2)
    few, many = (len(operations(model, inputs_of(n))) for n in (4, 16))
    assert few == many


@pytest.mark.parametrize("size", [None, 2])
def test_a_frozen_image_encoder_has_no_backward_pass(size, make_model):
    """Nor dropout, nor statistics that move; only the texts learn."""
    model = make_model(microbatch_size=size)
    inputs = inputs_of(4)
    depthwise = {
        "tensorflow": "DepthwiseConv2dNativeBackpropFilter",
        "jax": CONVOLUTION,
        "torch": "aten.convolution_backward.default",
    }[BACKEND]
    trained = operations(model, inputs).count(depthwise)
    model.image_encoder.trainable = False
    frozen = operations(model, inputs).count(depthwise)
    # Forward, and by both inputs backward, but for the first: 3 n - 1.
    forward = -(-trained // 3) if BACKEND == "jax" else 0
    assert trained > 0 and frozen <= forward
    before = numbers(model.image_encoder.variables)
    vectors = ops.convert_to_numpy(model.image_vectors(inputs["images"]))
    model.compile(
        keras.optimizers.SGD(0.1), ContrastiveLoss(0.1), microbatch_size=size
    )
    model.fit(inputs, batch_size=4, verbose=0)
    for old, new in zip(
        before, numbers(model.image_encoder.variables), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    again = model.image_vectors(inputs["images"], training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(again), vectors, rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(make_model):
    model = make_model(microbatch_size=3)
    with pytest.raises(ValueError, match="microbatch_size=3.*batch is 8"):
        model.fit(inputs_of(8), batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="Received: microbatch_size=0"):
        make_model(microbatch_size=0)


def test_foreign_statistics_must_not_see_padding(tiny_model, pairs):
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.1), microbatch_size=2)
    with pytest.raises(ValueError, match="count the padding in its statistics"):
        model.fit(pairs(6), batch_size=4, verbose=0)


def test_labels_are_refused(tiny_model, pairs):
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="There are no labels"):
        model.fit(pairs(4), np.ones(4), batch_size=4, verbose=0)


def test_options_of_compile_survive_saving(make_model, tmp_path):
    model = make_model(microbatch_size=2, remat=True, skip_nonfinite=True)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.microbatch_size == 2
    assert again.remat and again.skip_nonfinite
