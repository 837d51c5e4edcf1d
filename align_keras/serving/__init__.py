"""Models that answer outside of this package."""

from align_keras.serving.latency import measure_latency
from align_keras.serving.portable import export_towers
from align_keras.serving.saved_model import export_saved_model

__all__ = ["export_saved_model", "export_towers", "measure_latency"]
