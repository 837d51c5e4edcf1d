"""What any Keras model must show to serve as an encoder."""


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
    """Pick the output that `pooling` is about.

    An encoder that names several is taken at its word with `"auto"` and
    `"none"`; to pool ourselves, the sequence is needed.
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
    """Return the mask of the places that an encoder's output holds, if named.

    A mask that Keras' layers attach to a tensor finds its own way.
    """
    return outputs.get("padding_mask") if isinstance(outputs, dict) else None


def trained_variables(layer):
    """List the variables of a layer that are trained.

    Keras' `trainable_variables` leaves out those of a frozen layer whose inner
    layers were set free again, as low-rank updates are.
    """
    return [v for v in layer.variables if v.trainable]
