"""What every model class here holds to, in values."""

import copy
import dataclasses
import inspect
import itertools
import json
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import EfficientNetBackbone
from align_keras import EfficientNetL2Backbone
from align_keras import Lamb

BACKEND = keras.config.backend()
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a red bus".split()
LENGTH = 8
rng = np.random.default_rng(0)
IMAGES = rng.uniform(-1, 1, (3, 32, 32, 3)).astype("float32")
MASK = (np.arange(LENGTH) < [[8], [3], [5]]).astype("int32")
TOKENS = {
    "token_ids": rng.integers(5, 50, (3, LENGTH)).astype("int32") * MASK,
    "padding_mask": MASK,
}
NETWORK = {"width_coefficient": 0.2, "depth_coefficient": 0.2}
# Any but the defaults, and but what the small models have.
OTHER_NETWORK = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "image_shape": (3, 32, 32),
    "dropout": 0.4,
    "batch_norm": "ghost",
    "virtual_batch_size": 2,
    "padding": "same",
    "activation": "relu",
    "squeeze_activation": "tanh",
    "data_format": "channels_first",
    "dtype": "mixed_bfloat16",
    "name": "mine",
    "trainable": False,
}


def image_encoder(cls=EfficientNetBackbone, **kwargs):
    return cls(**{**NETWORK, **kwargs})


def text_encoder(**kwargs):
    return BertTextEncoder(50, 1, 2, 16, 32, **kwargs)


def dual_encoder(dtype=None, **kwargs):
    return AlignDualEncoder(
        image_encoder(dropout=0.0, dtype=dtype),
        text_encoder(dropout=0.0, dtype=dtype),
        dtype=dtype,
        **{"embedding_dim": 12, **kwargs},
    )


def other_dual_encoder():
    return AlignDualEncoder(
        image_encoder(dropout=0.3),
        text_encoder(dropout=0.3),
        embedding_dim=14,
        initial_temperature=0.3,
        temperature_range=(0.2, 0.9),
        temperature_form="raw",
        initial_bias=-2.5,
        image_pooling="first",
        text_pooling="none",
        preprocessor=AlignPreprocessor(
            AlignTokenizer(VOCABULARY),
            AlignImageConverter(image_size=32),
            sequence_length=6,
        ),
        dtype="mixed_bfloat16",
        name="mine",
        trainable=False,
    )


@dataclasses.dataclass
class Case:
    build: Callable
    other: Callable
    inputs: np.ndarray | dict
    parameters: int
    other_inputs: np.ndarray | dict | None = None


PAIRS = {"images": IMAGES, **TOKENS}
CHANNELS_FIRST = IMAGES.transpose(0, 3, 1, 2)
CASES = {
    "EfficientNetBackbone": Case(
        image_encoder,
        lambda: EfficientNetBackbone(**OTHER_NETWORK),
        IMAGES,
        65_593,
        CHANNELS_FIRST,
    ),
    "EfficientNetL2Backbone": Case(
        lambda **kwargs: image_encoder(EfficientNetL2Backbone, **kwargs),
        lambda: EfficientNetL2Backbone(**OTHER_NETWORK),
        IMAGES,
        65_593,
        CHANNELS_FIRST,
    ),
    "BertTextEncoder": Case(
        text_encoder,
        lambda: BertTextEncoder(
            50,
            1,
            2,
            16,
            32,
            dropout=0.3,
            max_sequence_length=20,
            num_segments=3,
            activation="gelu_tanh",
            dtype="mixed_bfloat16",
            name="mine",
            trainable=False,
        ),
        TOKENS,
        11_280,
    ),
    "AlignDualEncoder": Case(dual_encoder, other_dual_encoder, PAIRS, 77_858),
}


def make(build, **kwargs):
    """Build a model with weights that let everything show in the outputs."""
    keras.utils.set_random_seed(0)
    model = build(**kwargs)
    values = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.endswith(("variance", "gamma")):
            variable.assign(values.uniform(0.5, 1.5, variable.shape))
        elif "temperature" not in variable.path:
            variable.assign(values.normal(0, 0.3, variable.shape))
    return model


def outputs_of(model, inputs, **kwargs):
    tree = model(inputs, **kwargs)
    tree = tree if isinstance(tree, dict) else {"": tree}
    return {
        name: ops.convert_to_numpy(ops.cast(value, "float32"))
        for name, value in tree.items()
    }


def assert_near(found, expected, tolerance=1e-5):
    """Compare outputs, up to a part of their greatest value."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert scale > 1e-3, name
        np.testing.assert_allclose(
            found[name] / scale, value / scale, atol=tolerance, err_msg=name
        )


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


# For what takes long: the dual encoder holds an EfficientNet.
ONE_OF_EACH = ["BertTextEncoder", "AlignDualEncoder"]


@pytest.fixture(scope="module")
def built():
    """The model of a case and what it returns; not to be changed."""
    models = {}

    def find(case):
        if id(case) not in models:
            model = make(case.build)
            models[id(case)] = model, outputs_of(model, case.inputs)
        return models[id(case)]

    return find


# === Config ===


def test_no_argument_gets_lost(case):
    """Each differs from its default, and comes back through JSON."""
    model = make(case.other)
    config = json.loads(json.dumps(model.get_config()))
    for name, argument in inspect.signature(type(model)).parameters.items():
        if argument.kind is argument.VAR_KEYWORD:
            continue
        assert name in config, f"{name} is not in the config"
        assert config[name] != argument.default, f"{name} is the default"
    again = type(model).from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    assert again.trainable is False and again.name == "mine"
    again.set_weights(model.get_weights())
    x = case.inputs if case.other_inputs is None else case.other_inputs
    assert_near(outputs_of(again, x), outputs_of(model, x), 0)


def test_arguments_that_a_class_has_not_are_refused(case, built):
    """Keras' functional models would take them and forget them."""
    config = built(case)[0].get_config()
    build = type(built(case)[0]).from_config
    for name in ("drop_out", "text_poling", "weights"):
        with pytest.raises(ValueError, match=f"no argument `{name}`"):
            build({**config, name: 0.3})
    with pytest.raises(ValueError, match="Did you mean `dropout`"):
        text_encoder(droput=0.3)


def test_the_number_of_weights(case, built):
    model, _ = built(case)
    sizes = [int(np.prod(v.shape)) for v in model.weights]
    assert model.count_params() == sum(sizes) == case.parameters


# === Copies ===


def test_copies_are_equal(case, built):
    model, expected = built(case)
    # Keras makes a plain graph of an encoder.
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_near(outputs_of(clone, case.inputs), expected, 1e-6)
    assert clone.count_params() == case.parameters
    again = copy.deepcopy(model)
    assert type(again) is type(model)
    assert_near(outputs_of(again, case.inputs), expected, 0)
    again.set_weights([0 * w for w in again.get_weights()])
    assert_near(outputs_of(model, case.inputs), expected, 0)


def test_a_fresh_process_finds_the_classes(built, tmp_path, run_script):
    """Files of all classes; one is compiled, and has a preprocessor."""
    expected = {}
    for name, case in CASES.items():
        model, expected[name] = built(case)
        if name == "AlignDualEncoder":
            model = copy.deepcopy(model)
            model.preprocessor = AlignPreprocessor(
                AlignTokenizer(VOCABULARY), sequence_length=LENGTH
            )
            model.compile(Lamb(0.1, weight_decay=0.1), ContrastiveLoss(0.3))
            texts = ops.convert_to_numpy(model.encode_text(["a red bus"]))
            expected[name] = {**expected[name], "texts": texts}
        model.save(tmp_path / f"{name}.keras")
        if name in ONE_OF_EACH:
            model.save_to_preset(tmp_path / name)
        inputs = case.inputs if isinstance(case.inputs, dict) else {"": IMAGES}
        np.savez(tmp_path / f"{name}_inputs.npz", **inputs)
    run_script("tests/models/load_saved.py", tmp_path, *CASES)
    for name, value in expected.items():
        forms = ("keras", "preset") if name in ONE_OF_EACH else ("keras",)
        for form in forms:
            found = dict(np.load(tmp_path / f"{name}_{form}.npz"))
            assert_near(found, value)


# === Precision ===


def test_mixed_precision(case, built):
    model, expected = built(case)
    mixed = case.build(dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    for variable in mixed.weights:
        assert keras.backend.standardize_dtype(variable.dtype) == "float32"
    found = mixed(case.inputs)
    found = found if isinstance(found, dict) else {"": found}
    wide = isinstance(mixed, AlignDualEncoder)
    for value in found.values():
        dtype = keras.backend.standardize_dtype(value.dtype)
        assert dtype == ("float32" if wide else "bfloat16")
    found = outputs_of(mixed, case.inputs)
    assert_near(found, expected, 0.1)
    assert any((found[name] != expected[name]).any() for name in found)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_quantised_models_come_back(name, built, tmp_path):
    case = CASES[name]
    model, expected = built(case)
    model = copy.deepcopy(model)
    model.quantize("int8")
    found = outputs_of(model, case.inputs)
    assert_near(found, expected, 0.1)
    assert any((found[name] != expected[name]).any() for name in found)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for again in (
        keras.saving.load_model(tmp_path / "model.keras"),
        type(model).from_preset(str(tmp_path / "preset")),
    ):
        modes = [
            [layer.quantization_mode for layer in m._flatten_layers()]
            for m in (model, again)
        ]
        assert modes[0] == modes[1] and "int8" in modes[0]
        assert_near(outputs_of(again, case.inputs), found, 0)
    with pytest.raises(ValueError, match="quantised.*dtype='bfloat16'"):
        type(model).from_preset(str(tmp_path / "preset"), dtype="bfloat16")


# === Padding ===


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_padding_changes_nothing(name, built):
    """Neither more of it, nor other tokens in its place."""
    model, expected = built(CASES[name])
    x = CASES[name].inputs
    noise = np.random.default_rng(1).integers(5, 50, (3, LENGTH), "int32")
    ids = np.concatenate([x["token_ids"] + noise * (1 - MASK), noise], 1)
    mask = np.concatenate([MASK, np.zeros_like(MASK)], 1)
    found = outputs_of(model, {**x, "token_ids": ids, "padding_mask": mask})
    if "sequence_output" in expected:
        real = MASK[..., None]
        expected = {
            **expected,
            "sequence_output": expected["sequence_output"] * real,
        }
        found["sequence_output"] = found["sequence_output"][:, :LENGTH] * real
    assert_near(found, expected)


# === Training ===


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_trainable_is_read_when_it_matters(name, built):
    """Frozen after it was built, and set free after that."""
    case = CASES[name]
    model = copy.deepcopy(built(case)[0])
    task, target = model, ()
    if not isinstance(model, AlignDualEncoder):
        vectors = model.output
        if isinstance(vectors, dict):
            vectors = vectors["pooled_output"]
        else:
            vectors = keras.layers.GlobalAveragePooling2D()(vectors)
        task = keras.Model(model.input, keras.layers.Dense(1)(vectors))
        target = (np.array([[1.0], [0.0], [2.0]]),)
    towers = [model]
    if task is model:
        towers = [model.image_encoder, model.text_encoder]
    for free in (False, True):
        for tower in towers:
            tower.trainable = free
        task.compile(keras.optimizers.Adam(0.1), *(["mse"] if target else []))
        variables = [v for tower in towers for v in tower.variables]
        before = [ops.convert_to_numpy(v) for v in variables]
        task.fit(case.inputs, *target, batch_size=3, verbose=0)
        moved = [
            not np.array_equal(ops.convert_to_numpy(v), old)
            for v, old in zip(variables, before, strict=True)
            if "seed" not in v.path
        ]
        # Keys have a bias that makes no difference.
        assert np.mean(moved) > 0.9 if free else not any(moved)


@pytest.mark.skipif(BACKEND != "torch", reason="is about torch's modules")
def test_torch_sees_all_variables(case, built):
    """KerasHub's backbones have no parameters for it."""
    model = copy.deepcopy(built(case)[0])
    text_encoder = getattr(model, "text_encoder", model)
    if isinstance(text_encoder, BertTextEncoder):
        text_encoder.enable_lora(2)  # The dual encoder is not told of it.
    values = {id(variable.value) for variable in model.variables}
    assert {id(parameter) for parameter in model.parameters()} == values
    assert {id(v) for v in model.state_dict(keep_vars=True).values()} == values


# === Exports ===


def signature_of(inputs):
    return [
        keras.tree.map_structure(
            lambda x: keras.InputSpec(shape=x.shape, dtype=x.dtype), inputs
        )
    ]


def run_saved_model(path, inputs):
    import tensorflow as tf

    served = tf.saved_model.load(path)  # Holds the variables.
    return served.serve(inputs)


def run_onnx(path, inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    nodes = [node.name for node in session.get_inputs()]
    if not isinstance(inputs, dict):
        inputs = {nodes[0]: inputs}
    names = [node.name for node in session.get_outputs()]
    rows = zip(names, session.run(None, inputs), strict=True)
    return [value for _, value in sorted(rows)]


def run_litert(path, inputs):
    import tensorflow as tf

    runner = tf.lite.Interpreter(path).get_signature_runner()
    # LiteRT numbers inputs and outputs, in the order of their names.
    rows = (
        sorted(inputs.items()) if isinstance(inputs, dict) else [("", inputs)]
    )
    nodes = sorted(runner.get_input_details())
    inputs = {n: x for n, (_, x) in zip(nodes, rows, strict=True)}
    return [value for _, value in sorted(runner(**inputs).items())]


def run_openvino(path, inputs):
    import openvino

    # Where a processor has numbers of 16 bits, they are the default.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precise)
    found = compiled(inputs)
    return {port.any_name: value for port, value in found.items()}


def run_torch(path, inputs):
    import torch

    program = torch.export.load(path).module()
    tensors = keras.tree.map_structure(torch.from_numpy, inputs)
    with torch.no_grad():
        return keras.tree.map_structure(ops.convert_to_numpy, program(tensors))


RUNTIMES = {
    "tf_saved_model": ("model", run_saved_model, True),
    "onnx": ("model.onnx", run_onnx, True),
    "litert": ("model.tflite", run_litert, False),
    "openvino": ("model.xml", run_openvino, True),
    "torch": ("model.pt2", run_torch, False),
}
# Where else a model is asked for, the message says so.
BACKENDS = {"tf_saved_model": ("tensorflow", "jax"), "torch": ("torch",)}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *itertools.product(ONE_OF_EACH, RUNTIMES),
        ("EfficientNetBackbone", "onnx"),
    ],
)
def test_exports_compute_the_same(name, form, built, tmp_path):
    """Of any batch where the format can, and of one of a fixed size."""
    case = CASES[name]
    model, expected = built(case)
    file, run, any_batch = RUNTIMES[form]
    path = str(tmp_path / file)
    # JAX must know that texts are shorter than the table of positions.
    any_batch = any_batch and BACKEND == "tensorflow"
    needed = BACKENDS.get(form, ("tensorflow",))
    if BACKEND not in needed:
        with pytest.raises(ValueError, match=f"on {' or '.join(needed)}: sav"):
            model.export(path, format=form)
        return
    if form in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "tf2onnx"}.get(form, form))
    options = (
        {} if any_batch else {"input_signature": signature_of(case.inputs)}
    )
    model.export(path, format=form, verbose=False, **options)
    found = run(path, case.inputs)
    if not isinstance(found, dict):
        found = found if isinstance(found, list) else [found]
        found = dict(zip(sorted(expected), found, strict=True))
    found = {name: np.asarray(value) for name, value in found.items()}
    assert_near(found, expected, 1e-4)
    if form == "onnx":
        fixed = {"input_signature": signature_of(case.inputs)}
        model.export(path, format=form, verbose=False, **fixed)
        values = dict(
            zip(sorted(expected), run(path, case.inputs), strict=True)
        )
        assert_near(values, expected, 1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow")
def test_an_export_names_the_extra_it_needs(built, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    model, _ = built(CASES["BertTextEncoder"])
    with pytest.raises(ImportError, match=r"align-keras\[openvino\]"):
        model.export(tmp_path / "model.xml", format="openvino")
