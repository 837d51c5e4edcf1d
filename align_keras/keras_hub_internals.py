"""Names that KerasHub and Keras do not export, each with its reason."""

import contextlib

import keras

# Variables that were made inside a scope wait here to be filled.
from keras.src.backend.common import global_state

# What `save_weights` writes, to be kept in memory instead: it takes no file
# that is open, and reads the variables while it writes.
from keras.src.saving.saving_lib import H5IOStore
from keras.src.saving.saving_lib import ShardedH5IOStore
from keras.src.saving.saving_lib import _save_state as save_state

# A path in the configuration of a stranger's model is not to be read.
from keras.src.saving.serialization_lib import in_safe_mode

# `fit` takes its data from an adapter, and any adapter in the place of data,
# but says so nowhere; it is where all kinds of data become batches.
from keras.src.trainers.data_adapters import get_data_adapter

# What `validation_split` means to `fit`, which gives no access to its parts.
from keras.src.trainers.data_adapters.array_slicing import (
    train_validation_split,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

# Grain sends what its workers make to other processes, where NumPy's arrays
# alone travel well; its frames on the stack tell that a layer runs inside.
from keras.src.utils.backend_utils import in_grain_data_pipeline

# What `hf://` and other handles mean to KerasHub, and its reader of presets:
# a tokenizer or image converter of ours serves models of several classes,
# which `Tokenizer.from_preset` does not foresee.
from keras_hub.src.utils.preset_utils import BUILTIN_PRESETS
from keras_hub.src.utils.preset_utils import KerasPresetLoader
from keras_hub.src.utils.preset_utils import get_file

# `Backbone.presets` is a property of the class, which plain Python has no
# word for since `classmethod` and `property` no longer combine.
from keras_hub.src.utils.python_utils import classproperty

# What KerasHub's tokenizers take for strings, tensors of every kind included.
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
    """Make variables that have a shape and a dtype, and never a value.

    Keras fills variables that were made without a value as soon as it leaves
    the scope around them, which the largest models have no room for. What is
    to be traced must be given values of its own, as a step without side
    effects is.
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

    They hold the weights, and neither KerasHub nor Keras' attention names
    them in public.

    Args:
        layer: `TransformerEncoder`, built.

    Returns:
        A dict from the name that BERT gives the part to the Keras layer.
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
    """Run a `keras_hub.layers.TransformerEncoder` for some of its positions.

    Each attends to all positions, as when the layer is called; its other parts
    know no neighbours. For inference: there is no dropout.

    Args:
        layer: `TransformerEncoder`, built, without `normalize_first`.
        queries: float tensor `(batch, positions, dim)`, of `inputs`.
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
