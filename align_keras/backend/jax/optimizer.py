"""What optimizers of Keras lack under several replicas: nothing here."""

from align_keras.backend.plain_optimizer import ReplicaClipping

__all__ = ["ReplicaClipping"]
