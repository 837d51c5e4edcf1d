import numpy as np
import pytest
from keras import ops

from align_keras.models import GhostBatchNormalization


def test_normalises_each_run_by_its_own_statistics():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (12, 5, 5, 4)).astype("float32")
    layer = GhostBatchNormalization(4, momentum=0.9, epsilon=1e-3)
    layer.build(x.shape)
    layer.settle()
    gamma, beta = rng.normal(size=(2, 4))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    got = ops.convert_to_numpy(layer(x, training=True))
    runs = x.reshape(3, 4, 5, 5, 4).astype("float64")
    mean = runs.mean(axis=(1, 2, 3), keepdims=True)
    variance = runs.var(axis=(1, 2, 3), keepdims=True)
    expected = (runs - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(
        got, expected.reshape(x.shape), rtol=1e-4, atol=1e-5
    )
    moving = 0.1 * mean.reshape(3, 4).mean(axis=0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.moving_mean), moving, rtol=1e-4
    )
    moving = 0.9 + 0.1 * variance.reshape(3, 4).mean(axis=0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.moving_variance), moving, rtol=1e-4
    )


def test_inference_uses_moving_statistics():
    layer = GhostBatchNormalization(4)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    layer.build(x.shape)
    layer.moving_mean.assign([1.0, 2.0, 3.0])
    layer.moving_variance.assign([4.0, 4.0, 9.0])
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 4, 9]) + 1e-3)
    for training in (False, None):
        np.testing.assert_allclose(
            ops.convert_to_numpy(layer(x, training=training)),
            expected,
            rtol=1e-5,
        )


def test_frozen_layer_keeps_its_statistics():
    layer = GhostBatchNormalization(2)
    layer.build((4, 3))
    layer.trainable = False
    layer(np.ones((4, 3), "float32"), training=True)
    assert ops.convert_to_numpy(layer.moving_mean).tolist() == [0, 0, 0]


def test_refuses_a_batch_that_does_not_divide():
    layer = GhostBatchNormalization(4)
    with pytest.raises(ValueError, match="batch=6, virtual_batch_size=4"):
        layer(np.ones((6, 3), "float32"), training=True)


def test_refuses_what_it_would_ignore():
    with pytest.raises(ValueError, match="must be False.*synchronized=True"):
        GhostBatchNormalization(4, synchronized=True)
    layer, x = GhostBatchNormalization(2), np.ones((4, 5, 3), "float32")
    mask = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match=r"no `mask`.*of shape \(4, 5\)"):
        layer(x, training=True, mask=mask)
    layer(x, training=False, mask=mask)
