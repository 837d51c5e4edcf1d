"""Norms of the towers' gradients, against the step that they make."""

import numpy as np
import pytest
from keras import ops

from align_keras.optimizers import SGD


def change(model, before, kind):
    """The length of the step of a tower with its projection."""
    layers = (
        getattr(model, f"{kind}_encoder"),
        getattr(model, f"{kind}_projection"),
    )
    own = {id(v) for layer in layers for v in layer.variables}
    squares = [
        ((ops.convert_to_numpy(v) - value) ** 2).sum()
        for v, value in zip(model.trainable_variables, before, strict=True)
        if id(v) in own
    ]
    assert len(squares) > 3
    return np.sqrt(sum(squares))


@pytest.mark.parametrize("limit", [None, 0.01])
def test_a_step_of_gradient_descent_is_as_long(limit, tiny_model, pairs):
    model = tiny_model(initial_temperature=0.2)
    optimizer = SGD(1.0, global_clipnorm=limit)
    model.compile(optimizer, gradient_norms=True)
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    logs = model.fit(pairs(8), batch_size=8, verbose=0).history
    norms = {
        kind: logs[f"{kind}_gradient_norm"][0] for kind in ("image", "text")
    }
    steps = {kind: change(model, before, kind) for kind in norms}
    assert norms["image"] != pytest.approx(norms["text"], rel=1e-2)
    if limit is None:
        for kind, norm in norms.items():
            assert norm == pytest.approx(steps[kind], rel=1e-4)
        return
    # They are told as they were before clipping.
    total = np.sqrt(sum(step**2 for step in steps.values()))
    assert total <= limit * 1.001 < min(norms.values())
    assert norms["image"] / norms["text"] == pytest.approx(
        steps["image"] / steps["text"], rel=1e-3
    )


def test_nobody_asked(tiny_model, pairs):
    model = tiny_model()
    model.compile(SGD(0.1))
    logs = model.fit(pairs(8), batch_size=8, verbose=0).history
    assert not any("norm" in name for name in logs)
    assert model.get_compile_config()["gradient_norms"] is False
