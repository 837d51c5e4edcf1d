"""Base class of models on backends that need nothing beyond Keras."""


class Module:
    """Adds nothing to a model."""
