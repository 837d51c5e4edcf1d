"""Link the tensors of other libraries to the variables of our models."""

import dataclasses
import math

import keras
import numpy as np
from keras import layers

from align_keras.models.batch_normalization import BatchNormalization

# Maximum number of names in an error message, for each kind of mismatch.
_MOST_NAMES = 50


@dataclasses.dataclass(frozen=True)
class Link:
    """One of our variables and the layout of its value in another library.

    Args:
        variable: `keras.Variable`.
        shape: tuple. The shape of the foreign tensor.
        axes: tuple. The axes of the foreign tensor, in the order of ours.
    """

    variable: keras.Variable
    shape: tuple
    axes: tuple

    @property
    def weight(self):
        """The weight of the model that the link sets."""
        return self.variable

    def to_keras(self, tensor):
        """Turn a foreign tensor into the value of the variable."""
        return tensor.transpose(self.axes).reshape(self.variable.shape)

    def to_foreign(self):
        """Turn the value of the variable into a foreign tensor in float32."""
        value = keras.ops.convert_to_numpy(self.variable).astype("float32")
        value = value.reshape([self.shape[axis] for axis in self.axes])
        return np.array(value.transpose(np.argsort(self.axes)), order="C")


class Tensors:
    """Named arrays in memory, with the interface of `SafetensorsFiles`.

    Args:
        arrays: dict from name to array.
        source: string. The origin of the arrays, for error messages.
    """

    def __init__(self, arrays, source):
        self._arrays = arrays
        self.source = source
        self.shapes = {name: tuple(a.shape) for name, a in arrays.items()}

    def dtype(self, name):
        """Return the dtype of integers as safetensors names it, or `None`."""
        dtype = self._arrays[name].dtype
        if dtype.kind not in "iu":
            return None
        return f"{dtype.kind.upper()}{8 * dtype.itemsize}"

    def read(self, name):
        """Return the NumPy array of that name."""
        return np.asarray(self._arrays[name])


def assign(model, links, tensors, unused=lambda name: False, built=()):
    """Set every weight of a model from its tensor, or raise and set none.

    Args:
        model: `keras.Model`.
        links: dict from the name of a tensor to its `Link`.
        tensors: `Tensors`, or a class with the same interface.
        unused: callable. Takes the name of a tensor without a link and tells
            whether our model is known not to need it. Defaults to refusing
            all such tensors.
        built: sequence of weights that keep their initial value. Defaults to
            none.

    Raises:
        ValueError: Tensors are missing, unexpected, quantised or of another
            shape, or a weight has no link; the message names them.
    """
    shapes = tensors.shapes
    linked = {id(link.weight) for link in links.values()}
    linked.update(map(id, built))
    normalizations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, BatchNormalization)
    ]
    linked.update(id(layer.moving_share) for layer in normalizations)
    fresh = [
        f"{weight.path} {tuple(weight.shape)}"
        for weight in model.weights
        if id(weight) not in linked
    ]
    missing = [
        f"{name} {link.shape}"
        for name, link in links.items()
        if name not in shapes
    ]
    unexpected = [
        f"{name} {shape}"
        for name, shape in shapes.items()
        if name not in links and not unused(name)
    ]
    misshapen = [
        f"{name} is {shapes[name]} there and {link.shape} in the model"
        for name, link in links.items()
        if name in shapes and shapes[name] != link.shape
    ]
    findings = [
        f"{title}: {_enumerate(names)}"
        for title, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("wrong shapes", misshapen),
            ("nothing for the model's weights", fresh),
        )
        if names
    ]
    if findings:
        raise ValueError(
            f"The weights in {tensors.source} do not fit the model, and none "
            f"was loaded. They have {'; '.join(findings)}."
        )
    # Check every tensor before the first variable changes.
    for name in links:
        _require_numbers(tensors, name)
    for name, link in links.items():
        link.variable.assign(link.to_keras(tensors.read(name)))
    for layer in normalizations:
        layer.settle()


def _enumerate(names):
    text = ", ".join(names[:_MOST_NAMES])
    rest = len(names) - _MOST_NAMES
    return f"{text} and {rest} more" if rest > 0 else text


def _require_numbers(tensors, name):
    dtype = tensors.dtype(name) if hasattr(tensors, "dtype") else None
    if dtype not in (None, "F64", "F32", "F16", "BF16"):
        raise ValueError(
            f"The weights in {tensors.source} are quantised: {name} is of type "
            f"{dtype}. Save them in floating point first."
        )


# === Layers in PyTorch's layout ===


def torch_links(name, layer):
    """Link a layer with the tensors of a PyTorch module.

    PyTorch's convolution kernels have the shape `(out, in, height, width)`,
    and the kernels of its linear layers `(out, in)`.

    Args:
        name: string. The name of the module.
        layer: A Keras layer, built.

    Returns:
        A dict from the name of a tensor to its `Link`.
    """
    if isinstance(layer, layers.BatchNormalization):
        return {
            f"{name}.weight": _same(layer.gamma),
            f"{name}.bias": _same(layer.beta),
            f"{name}.running_mean": _same(layer.moving_mean),
            f"{name}.running_var": _same(layer.moving_variance),
        }
    if isinstance(layer, layers.LayerNormalization):
        return {
            f"{name}.weight": _same(layer.gamma),
            f"{name}.bias": _same(layer.beta),
        }
    embeddings = embeddings_of(layer)
    if embeddings is not None:
        return {f"{name}.weight": _same(embeddings)}
    if isinstance(layer, layers.DepthwiseConv2D):
        return {f"{name}.weight": _permuted(layer.kernel, (2, 3, 0, 1))}
    if isinstance(layer, layers.Conv2D):
        return {f"{name}.weight": _permuted(layer.kernel, (2, 3, 1, 0))}
    rows, columns = matrix_shape(layer)
    return {
        f"{name}.weight": Link(layer.kernel, (columns, rows), (1, 0)),
        f"{name}.bias": Link(layer.bias, (columns,), (0,)),
    }


def torch_pointwise_links(name, layer):
    """Link a dense layer with a 1x1 convolution in PyTorch."""
    rows, columns = layer.kernel.shape
    shape = (columns, rows, 1, 1)
    return {
        f"{name}.weight": Link(layer.kernel, shape, (1, 0, 2, 3)),
        f"{name}.bias": _same(layer.bias),
    }


# === Layers in TensorFlow's layout ===


def tensorflow_links(name, layer):
    """Link a layer with the variables of a TensorFlow layer.

    The kernels of matrix products have two axes there, even if ours have more.

    Args:
        name: string. The name of the layer, such as `"dense"`.
        layer: A Keras layer, built.

    Returns:
        A dict from the name of a variable, such as `"dense/kernel"`, to its
        `Link`; the variable of an embedding has the layer's name.
    """
    embeddings = embeddings_of(layer)
    if embeddings is not None:
        return {name: _same(embeddings)}
    if isinstance(layer, (layers.Dense, layers.EinsumDense)):
        rows, columns = matrix_shape(layer)
        return {
            f"{name}/kernel": Link(layer.kernel, (rows, columns), (0, 1)),
            f"{name}/bias": Link(layer.bias, (columns,), (0,)),
        }
    return {
        f"{name}/{role}": _same(variable)
        for role, variable in roles(layer).items()
    }


def copy_layers(model, pairs, source):
    """Copy the weights of layers in memory to our model.

    Args:
        model: `keras.Model`.
        pairs: dict from a name for error messages to a pair: a layer of any
            version of Keras, and our layer. A pointwise convolution may
            correspond to a dense layer of ours.
        source: string. The origin of the layers, for error messages.

    Raises:
        ValueError: A weight is missing, unexpected, quantised or of another
            shape.
    """
    links, arrays = {}, {}
    for name, (theirs, ours) in pairs.items():
        own = roles(ours)
        for role, variable in own.items():
            links[f"{name}/{role}"] = _same(variable)
        for role, variable in roles(theirs).items():
            array = np.asarray(variable)
            target = own.get(role)
            is_map = array.ndim == 4 and array.shape[:2] == (1, 1)
            if is_map and target is not None and len(target.shape) == 2:
                array = array[0, 0]
            arrays[f"{name}/{role}"] = array
    assign(model, links, Tensors(arrays, source))


def roles(layer):
    """Map roles such as `"kernel"` to a layer's variables, in any Keras."""
    names = (
        "kernel",
        "depthwise_kernel",
        "bias",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
        "embeddings",
        "position_embeddings",
        "_position_embeddings",
    )
    found = {}
    for name in names:
        variable = getattr(layer, name, None)
        if hasattr(variable, "shape"):
            role = "kernel" if name == "depthwise_kernel" else name
            role = "embeddings" if "embeddings" in role else role
            found[role] = variable
    return found


def embeddings_of(layer):
    """Return the table of an embedding or position embedding, or `None`."""
    for name in ("embeddings", "position_embeddings"):
        table = getattr(layer, name, None)
        if table is not None:
            return table
    return None


def matrix_shape(layer):
    """Return the number of inputs and outputs of a dense layer."""
    columns = math.prod(layer.bias.shape)
    return math.prod(layer.kernel.shape) // columns, columns


def _same(variable):
    shape = tuple(variable.shape)
    return Link(variable, shape, tuple(range(len(shape))))


def _permuted(variable, axes):
    shape = [None] * len(axes)
    for position, axis in enumerate(axes):
        shape[axis] = variable.shape[position]
    return Link(variable, tuple(shape), axes)
