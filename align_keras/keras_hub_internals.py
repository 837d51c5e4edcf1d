"""Names that KerasHub and Keras do not export, each with its reason."""

# `Backbone.presets` is a property of the class, which plain Python has no
# word for since `classmethod` and `property` no longer combine.
from keras_hub.src.utils.python_utils import classproperty

__all__ = ["classproperty"]
