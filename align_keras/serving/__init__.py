"""Models that answer outside of this package."""

from align_keras.serving.classes import class_vectors
from align_keras.serving.classes import read_classes
from align_keras.serving.classes import read_templates
from align_keras.serving.export import export_preset
from align_keras.serving.export import export_saved_model
from align_keras.serving.measure import measure_latency
from align_keras.serving.portable import export_towers

__all__ = [
    "class_vectors",
    "export_preset",
    "export_saved_model",
    "export_towers",
    "measure_latency",
    "read_classes",
    "read_templates",
]
