"""Read and write weights of other libraries; see docs/foreign_weights.md."""

from align_keras.interop.convert import convert
from align_keras.interop.huggingface_align import save_huggingface
from align_keras.interop.keras_applications import from_keras_applications
from align_keras.interop.keras_applications import keras_applications_converter
from align_keras.interop.keras_hub import from_keras_hub_bert
from align_keras.interop.model_garden import from_model_garden_bert
from align_keras.interop.model_garden import from_model_garden_efficientnet
from align_keras.interop.recognize import open_foreign_weights

__all__ = [
    "convert",
    "from_keras_applications",
    "from_keras_hub_bert",
    "from_model_garden_bert",
    "from_model_garden_efficientnet",
    "keras_applications_converter",
    "open_foreign_weights",
    "save_huggingface",
]
