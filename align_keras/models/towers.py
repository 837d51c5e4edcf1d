"""Read the inputs, outputs and variables of any Keras model as an encoder."""


def declared(encoder, side):
    """Return the symbolic `input` or `output` of an encoder."""
    try:
        return getattr(encoder, side)
    except AttributeError:  # A `Sequential` model has lists only.
        return getattr(encoder, f"{side}s")[0]


def image_input(encoder):
    """Return the symbolic input of an image encoder, named or not."""
    inputs = declared(encoder, "input")
    if isinstance(inputs, dict):
        return inputs.get("images", next(iter(inputs.values())))
    return inputs


def main_output(outputs, pooling):
    """Pick the output of an encoder that `pooling` applies to.

    If an encoder has both outputs, `"auto"` and `"none"` use its pooled
    output; all other modes pool its sequence.
    """
    if not isinstance(outputs, dict):
        return outputs
    names = ["pooled_output", "sequence_output"]
    if pooling not in ("auto", "none"):
        names.reverse()
    for name in names:
        if name in outputs:
            return outputs[name]
    raise ValueError(
        "An encoder with several outputs must name one of them "
        "'pooled_output' or 'sequence_output'. "
        f"Received outputs: {sorted(outputs)}"
    )


def output_mask(outputs):
    """Return the padding mask among an encoder's outputs, or `None`.

    Keras itself passes on a mask that layers attach to a tensor.
    """
    return outputs.get("padding_mask") if isinstance(outputs, dict) else None


def trained_variables(layer):
    """List the variables of a layer that are trained.

    Keras' `trainable_variables` is empty for a frozen layer, even if variables
    within it were unfrozen again, such as low-rank updates.
    """
    return [v for v in layer.variables if v.trainable]


def require_floats(model, purpose):
    """Refuse a quantised model, whose matrices are codes, not weights.

    Args:
        model: `keras.Model`.
        purpose: string. What the weights are for, after "a quantised model
            cannot be ".

    Raises:
        ValueError: A layer of the model is quantised; the message names it.
    """
    quantized = [
        layer.path
        for layer in model._flatten_layers()
        if layer.quantization_mode is not None
    ]
    if quantized:
        raise ValueError(
            f"A quantised model cannot be {purpose}: use the model from before "
            f"`quantize`. Received: {len(quantized)} quantised layers, such as "
            f"`{quantized[-1]}`"
        )
