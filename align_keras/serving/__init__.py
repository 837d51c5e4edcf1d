"""Models that answer outside of this package."""

from align_keras.serving.export import export_preset
from align_keras.serving.export import export_saved_model

__all__ = ["export_preset", "export_saved_model"]
