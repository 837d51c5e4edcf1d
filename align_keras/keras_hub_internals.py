"""Private names of KerasHub and Keras, each with the reason we need it."""

import contextlib

import keras

# Holds variables made inside a scope until they are initialized.
from keras.src.backend.common import global_state

# Keeps in memory what `save_weights` would write. `save_weights` does not
# accept an open file, and reads the variables while it writes.
from keras.src.saving.saving_lib import H5IOStore
from keras.src.saving.saving_lib import ShardedH5IOStore
from keras.src.saving.saving_lib import _save_state as save_state

# In safe mode, do not read a path that an untrusted model's config names.
from keras.src.saving.serialization_lib import in_safe_mode

# `fit` reads its data through an adapter, which turns every kind of data into
# batches. It also accepts an adapter as data, which is not documented.
from keras.src.trainers.data_adapters import get_data_adapter

# Splits the data as `validation_split` does; `fit` does not expose the parts.
from keras.src.trainers.data_adapters.array_slicing import (
    train_validation_split,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

# Grain sends the output of its workers to other processes, and only NumPy
# arrays travel well. Its frames on the stack show that a layer runs inside it.
from keras.src.utils.backend_utils import in_grain_data_pipeline

# KerasHub's resolution of handles such as `hf://`, and its preset reader. Our
# tokenizer and image converter serve models of several classes, which
# `Tokenizer.from_preset` does not support.
from keras_hub.src.utils.preset_utils import BUILTIN_PRESETS
from keras_hub.src.utils.preset_utils import KerasPresetLoader
from keras_hub.src.utils.preset_utils import get_file

# `Backbone.presets` is a property of the class. Python no longer allows
# combining `classmethod` and `property`.
from keras_hub.src.utils.python_utils import classproperty

# Converts everything that KerasHub's tokenizers accept as strings, including
# tensors of every backend.
from keras_hub.src.utils.tensor_utils import (
    canonicalize_python_string_inputs as to_strings,
)
from keras_hub.src.utils.tensor_utils import (
    convert_preprocessing_outputs_grain as to_grain,
)
from keras_hub.src.utils.tensor_utils import restore_outer_shape

__all__ = [
    "BUILTIN_PRESETS",
    "DataAdapter",
    "H5IOStore",
    "KerasPresetLoader",
    "ShardedH5IOStore",
    "abstract_variables",
    "classproperty",
    "get_data_adapter",
    "get_file",
    "in_grain_data_pipeline",
    "in_safe_mode",
    "restore_outer_shape",
    "save_state",
    "to_grain",
    "to_strings",
    "train_validation_split",
    "transform_some",
    "transformer_parts",
]


@contextlib.contextmanager
def abstract_variables():
    """Create variables with a shape and a dtype but without a value.

    Keras initializes variables without a value as soon as it leaves the scope
    around them, and the largest models do not fit in memory. Code that traces
    such a model must pass the values itself, as stateless steps do.
    """
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(name, before)


def transformer_parts(layer):
    """Return the layers inside a `keras_hub.layers.TransformerEncoder`.

    They hold the weights, and neither KerasHub nor Keras' attention layer
    gives public access to them.

    Args:
        layer: `TransformerEncoder`, built.

    Returns:
        A dict from BERT's name of each part to the Keras layer.
    """
    attention = layer._self_attention_layer
    return {
        "attention.self.query": attention._query_dense,
        "attention.self.key": attention._key_dense,
        "attention.self.value": attention._value_dense,
        "attention.output.dense": attention._output_dense,
        "attention.output.LayerNorm": layer._self_attention_layer_norm,
        "intermediate.dense": layer._feedforward_intermediate_dense,
        "output.dense": layer._feedforward_output_dense,
        "output.LayerNorm": layer._feedforward_layer_norm,
    }


def transform_some(layer, queries, inputs, padding_mask):
    """Run a `keras_hub.layers.TransformerEncoder` for some positions only.

    Each of them attends to all positions, as when the layer is called. The
    other parts of the layer treat every position by itself. For inference:
    there is no dropout.

    Args:
        layer: `TransformerEncoder`, built, without `normalize_first`.
        queries: float tensor `(batch, positions, dim)`. The rows of `inputs`
            at these positions.
        inputs: float tensor `(batch, length, dim)`.
        padding_mask: int tensor `(batch, length)`.

    Returns:
        Float tensor `(batch, positions, dim)`.
    """
    x = layer._self_attention_layer(
        query=queries, value=inputs, attention_mask=padding_mask[:, None, :]
    )
    x = layer._self_attention_layer_norm(x + queries)
    y = layer._feedforward_intermediate_dense(x)
    y = layer._feedforward_output_dense(y)
    return layer._feedforward_layer_norm(x + y)
