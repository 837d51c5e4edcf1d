"""Gradient clipping on backends that see the gradient of the global batch."""


class ReplicaClipping:
    """Adds nothing: the program sees the gradient of the global batch."""
