"""Compare our backbone with each EfficientNet of `keras.applications`.

python tests/interop/compare_keras_applications.py [SIZE ...]

Prints the largest difference, relative to the largest output, for images of
any size and of a known odd size. The tests do so with the smallest, which take
seconds.
"""

import sys

import keras
import numpy as np
from keras import ops

from align_keras.interop import from_keras_applications
from align_keras.interop import keras_applications_converter

SIZES = [f"B{number}" for number in range(8)]
TOLERANCE = 1e-5


def randomize(model, seed=0):
    """Fill in weights and statistics as a trained network could have them."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        kind = weight.path.rpartition("/")[2]
        if "count" in kind or "seed" in weight.path:
            continue
        if kind in ("gamma", "moving_variance", "variance"):
            value = rng.uniform(0.7, 1.3, weight.shape)
        elif len(weight.shape) < 2:
            value = rng.uniform(-0.3, 0.3, weight.shape)
        else:
            fan_in = np.prod(weight.shape) / max(weight.shape[-1], 2)
            value = rng.normal(0, np.sqrt(1.5 / fan_in), weight.shape)
        weight.assign(value)
    # Statistics that were loaded into `Normalization` count from now on.
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def grey_levels(size, seed=0):
    """Make two smooth images."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (2, 5, 5, 3)).astype("float32")
    return ops.convert_to_numpy(ops.image.resize(coarse, size))


def before_the_head(model, images):
    """Run a model of `keras.applications` up to its head convolution."""
    features = keras.Model(model.inputs, model.get_layer("top_conv").input)
    return ops.convert_to_numpy(features(images))


def difference(model, size):
    """Return how far our backbone is from a model, and whether it tells.

    Args:
        model: `keras.Model` of `keras.applications`, made random.
        size: pair of ints. The size of the images.

    Returns:
        A pair: the largest difference relative to the largest output, and
        the largest deviation of a channel over the places, as relative.
    """
    images = grey_levels(size)
    converter = keras_applications_converter(model)
    prepared = images * np.float32(converter.scale)
    prepared += np.float32(converter.offset)
    expected = before_the_head(model, images)
    result = ops.convert_to_numpy(from_keras_applications(model)(prepared))
    scale = max(np.abs(expected).max(), 1)
    spread = np.std(expected / scale, axis=(1, 2)).max()
    return float(np.abs(result - expected).max() / scale), float(spread)


def main(sizes):
    worst = 0
    for name in sizes or SIZES:
        keras.backend.clear_session()
        make = getattr(keras.applications, f"EfficientNet{name}")
        model = randomize(make(False, weights=None))
        found = [difference(model, (64, 64))]
        known = make(False, weights=None, input_shape=(75, 97, 3))
        known.set_weights(model.get_weights())
        found.append(difference(randomize(known), (75, 97)))
        print(
            f"{name}: {found[0][0]:.1e} at 64x64, {found[1][0]:.1e} at 75x97 "
            f"(a channel varies by {found[0][1]:.2f} and {found[1][1]:.2f})",
            flush=True,
        )
        worst = max(worst, *(row[0] for row in found))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
