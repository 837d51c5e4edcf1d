"""Models, as Keras has them."""

from align_keras.backend.plain_module import Module

__all__ = ["Module"]
