"""Base class of models: nothing beyond Keras is needed."""

from align_keras.backend.plain_module import Module

__all__ = ["Module"]
