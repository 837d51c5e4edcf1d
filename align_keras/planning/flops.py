"""Count the operations of a traced function."""

import math
from typing import Any


def count_flops(jaxpr: Any, loops: bool = True) -> int:
    """Count the floating-point operations of matrix products and convolutions.

    A multiplication and its addition count as two operations. Everything else,
    such as activations and normalisations, is left out, as is usual for the
    operation count of a model.

    Args:
        jaxpr: `jax.extend.core.ClosedJaxpr` or `Jaxpr`. The result of
            `jax.make_jaxpr`.
        loops: bool. Whether to count every iteration of a loop. With `False`,
            a loop counts once, as in the compiler's own count. Defaults to
            `True`.

    Returns:
        An int, the number of operations.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_flops(equation, loops) for equation in jaxpr.eqns)


def _flops(equation, loops):
    name, parameters = equation.primitive.name, equation.params
    result = math.prod(equation.outvars[0].aval.shape)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * result * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = parameters["dimension_numbers"].rhs_spec[0]
        return 2 * result * math.prod(kernel) // kernel[outputs]
    inner = [count_flops(part, loops) for part in _parts(parameters)]
    if name == "cond":
        return max(inner, default=0)
    turns = parameters["length"] if name == "scan" and loops else 1
    return sum(inner) * turns


def _parts(parameters):
    """Yield the functions that an operation calls."""
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                yield part
