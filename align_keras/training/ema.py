import contextlib

from align_keras.models.snapshot import to_host


@contextlib.contextmanager
def averaged_weights(model):
    """Temporarily replace a model's weights by their moving averages.

    Evaluate and save within the context; afterwards the model has its own
    weights again, bit for bit, and training continues as before. Only
    trainable weights have averages: the statistics of normalisation layers
    are moving averages already. Without averages, or before the first step,
    nothing changes.

    Args:
        model: `keras.Model`, compiled. Its optimizer has averages if it was
            created with `use_ema=True`, or by a recipe with `ema`.

    Example:

    ```python
    with averaged_weights(model):
        model.save_to_preset("averaged")
    ```
    """
    optimizer = getattr(model, "optimizer", None)
    # Mixed precision wraps the optimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if (
        optimizer is None
        or not optimizer.use_ema
        or not optimizer.built
        or not int(optimizer.iterations)
    ):
        yield
        return
    pairs = [
        (variable, average)
        for variable, average in zip(
            optimizer._trainable_variables,
            optimizer._model_variables_moving_average,
            strict=True,
        )
        if average is not None
    ]
    own = [to_host(variable) for variable, _ in pairs]
    try:
        for variable, average in pairs:
            value = to_host(average)
            if variable.constraint is not None:
                # Keras averages the weights before it applies constraints.
                value = variable.constraint(value)
            variable.assign(value)
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)
