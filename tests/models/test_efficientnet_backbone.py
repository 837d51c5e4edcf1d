import json

import keras
import numpy as np
import pytest
from keras import ops
from towers import towers

from align_keras import EfficientNetBackbone
from align_keras.models.efficientnet_backbone import block_specs
from align_keras.models.shipped_presets import presets_directory

# Counting needs no second backend, and JAX is slow to trace large networks.
once = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="Sizes do not depend on the backend",
)

# Size: coefficients, blocks, trainable parameters in millions without head,
# channels of the last map, billions of multiply-accumulates at 289 pixels
# with a 10x10 map ("same" padding).
SIZES = {
    "b0": (1.0, 1.0, 16, 3.60, 320, 0.68),
    "b1": (1.0, 1.1, 23, 6.10, 320, 1.02),
    "b2": (1.1, 1.2, 23, 7.20, 352, 1.19),
    "b3": (1.2, 1.4, 26, 10.10, 384, 1.74),
    "b4": (1.4, 1.8, 32, 16.74, 448, 2.74),
    "b5": (1.6, 2.2, 39, 27.29, 512, 4.32),
    "b6": (1.8, 2.6, 45, 39.40, 576, 6.19),
    "b7": (2.0, 3.1, 55, 62.14, 640, 9.58),
    "l2": (4.3, 5.3, 88, 467.22, 1376, 69.89),
}


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


@once
@pytest.mark.parametrize("size", towers("b1", "b2", "b4", "b6", "b7"))
def test_sizes_are_those_published(size):
    width, depth, blocks, parameters, channels, gmacs = SIZES[size]
    # Within a stateless scope nothing is allocated.
    with keras.StatelessScope():
        model = EfficientNetBackbone(width, depth, padding="same")
    assert len(model.blocks) == blocks
    assert model.num_features == channels
    trainable = count(model.trainable_variables)
    assert trainable / 1e6 == pytest.approx(parameters, abs=0.005)
    preset = presets_directory() / "image" / f"{size}.json"
    assert trainable == json.loads(preset.read_text())["parameters"]
    if size == "b7":  # As the public checkpoint has.
        assert trainable == 62_143_440
    assert model.count_macs(289) / 1e9 == pytest.approx(gmacs, abs=0.006)


@once
def test_l2_stages():
    specs = list(block_specs(4.3, 5.3))
    stages = {spec["name"].split("_")[0]: spec for spec in specs}
    widths = [spec["output_filters"] for spec in stages.values()]
    assert widths == [72, 104, 176, 344, 480, 824, 1376]


def test_289_pixels_give_a_9x9_map():
    model = EfficientNetBackbone(0.2, 0.2)
    assert model.compute_output_shape((1, 289, 289, 3))[1:3] == (9, 9)
    same = EfficientNetBackbone(0.2, 0.2, padding="same")
    assert same.compute_output_shape((1, 289, 289, 3))[1:3] == (10, 10)


def test_drop_rates_grow_with_the_index_of_the_block():
    model = EfficientNetBackbone(1.0, 1.0, dropout=0.3)
    rates = [block.dropout for block in model.blocks]
    assert rates == pytest.approx([0.3 * i / 16 for i in range(16)])


def test_a_branch_is_dropped_for_whole_examples_and_rescaled():
    model = EfficientNetBackbone(0.2, 0.6)
    block = next(b for b in model.blocks if b.residual)
    block.drop_connect.rate = 0.5
    x = (
        np.random.default_rng(0)
        .normal(size=(64, 6, 6, block.input_filters))
        .astype("float32")
    )
    branch = ops.convert_to_numpy(block(x, training=False)) - x
    # Moving statistics stand in for those of the batch, to isolate dropping.
    for layer in (block.depthwise_bn, block.project_bn, block.expand_bn):
        layer.trainable = False
    dropped = ops.convert_to_numpy(block(x, training=True)) - x
    kept = np.abs(dropped).max(axis=(1, 2, 3)) > 0
    assert 15 < kept.sum() < 49
    np.testing.assert_allclose(
        dropped[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5
    )


def numpy_forward(model, images):
    """The network in NumPy: padding, convolutions, swish, squeeze-excite."""
    weights = {
        v.path: ops.convert_to_numpy(v).astype("float64")
        for v in model.variables
    }

    def pad(x, before, after):
        return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))

    def convolve(x, kernel, stride, depthwise=False):
        size = kernel.shape[0]
        n = (x.shape[1] - size) // stride + 1
        out = 0
        for i in range(size):
            for j in range(size):
                window = x[
                    :, i : i + stride * n : stride, j : j + stride * n : stride
                ][:, :n, :n]
                k = kernel[i, j]
                out = out + (window * k[:, 0] if depthwise else window @ k)
        return out

    def normalise(x, name):
        mean, variance = (
            weights[f"{name}/moving_{s}"] for s in ("mean", "variance")
        )
        x = (x - mean) / np.sqrt(variance + 1e-3)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def swish(x):
        return x / (1 + np.exp(-x))

    x = convolve(pad(images, 0, 1), weights["stem_conv/kernel"], 2)
    x = swish(normalise(x, "stem_bn"))
    for block in model.blocks:
        name, shortcut = block.name, x
        if block.expansion_ratio != 1:
            x = x @ weights[f"{name}/expand_conv/kernel"][0, 0]
            x = swish(normalise(x, f"{name}/expand_bn"))
        half = block.kernel_size // 2
        x = pad(x, half - 1 if block.strides == 2 else half, half)
        x = convolve(
            x,
            weights[f"{name}/depthwise_conv/kernel"],
            block.strides,
            depthwise=True,
        )
        x = swish(normalise(x, f"{name}/depthwise_bn"))
        gate = swish(
            x.mean(axis=(1, 2)) @ weights[f"{name}/squeeze_reduce/kernel"]
            + weights[f"{name}/squeeze_reduce/bias"]
        )
        gate = (
            gate @ weights[f"{name}/squeeze_expand/kernel"]
            + weights[f"{name}/squeeze_expand/bias"]
        )
        x = x / (1 + np.exp(-gate))[:, None, None]
        x = x @ weights[f"{name}/project_conv/kernel"][0, 0]
        x = normalise(x, f"{name}/project_bn")
        if block.residual:
            x = x + shortcut
    return x


def test_equals_a_numpy_network():
    rng = np.random.default_rng(0)
    model = EfficientNetBackbone(0.3, 0.6)
    for variable in model.variables:
        if "variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "mean" in variable.path or "beta" in variable.path:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    for size in (65, 48):
        images = rng.uniform(-1, 1, (2, size, size, 3)).astype("float32")
        expected = numpy_forward(model, images)
        got = ops.convert_to_numpy(model(images))
        np.testing.assert_allclose(
            got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )


def test_refuses_unknown_settings():
    with pytest.raises(ValueError, match="batch_norm='global'"):
        EfficientNetBackbone(0.2, 0.2, batch_norm="global")
    with pytest.raises(ValueError, match="padding='valid'"):
        EfficientNetBackbone(0.2, 0.2, padding="valid")
