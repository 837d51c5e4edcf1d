"""What models need beside what Keras gives them: nothing."""


class Module:
    """Adds nothing to a model."""
