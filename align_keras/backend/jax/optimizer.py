"""Keras' optimizers, which need no changes on this backend."""

from align_keras.backend.plain_optimizer import AdamStep
from align_keras.backend.plain_optimizer import ReplicaClipping

__all__ = ["AdamStep", "ReplicaClipping"]
