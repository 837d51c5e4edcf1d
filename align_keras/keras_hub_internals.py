"""Names that KerasHub and Keras do not export, each with its reason."""

# `fit` takes its data from an adapter, and any adapter in the place of data,
# but says so nowhere; it is where all kinds of data become batches.
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

# `Backbone.presets` is a property of the class, which plain Python has no
# word for since `classmethod` and `property` no longer combine.
from keras_hub.src.utils.python_utils import classproperty

__all__ = ["DataAdapter", "classproperty", "get_data_adapter"]
