"""What optimizers of Keras lack under several replicas."""


class ReplicaClipping:
    """Nothing to add: the program sees the gradient of the global batch."""
