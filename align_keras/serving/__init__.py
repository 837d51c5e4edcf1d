"""Models that answer outside of this package."""

from align_keras.serving.export import export_saved_model

__all__ = ["export_saved_model"]
