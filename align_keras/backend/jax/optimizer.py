"""Gradient clipping with Keras optimizers, which need no changes here."""

from align_keras.backend.plain_optimizer import ReplicaClipping

__all__ = ["ReplicaClipping"]
