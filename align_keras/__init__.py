"""ALIGN in Keras: curate, train, evaluate, serve and search images and text.

Public names are loaded when they are first used, so importing the package is
fast and does not choose a Keras backend.
"""

import os

import lazy_loader

from align_keras import registry
from align_keras import saved_classes

# TensorFlow reads these when it is imported. It enables its faster oneDNN
# convolutions by default on only a few processors. Its own allocator keeps the
# memory of large tensors from one step to the next. The C library's allocator
# returns that memory to the system, which clears it again at the next step;
# this takes a third of a training step. The default limit would be 64 GiB.
for _name, _value in {
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPU_ALLOCATOR_USE_BFC": "1",
    "TF_CPU_BFC_MEM_LIMIT_IN_MB": str(2**24),
}.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"

for _name, _place in {
    "export_saved_model": "align_keras.serving:export_saved_model",
    "export_onnx": "align_keras.serving.portable:export_onnx",
    "measure_retrieval": "align_keras.evaluation:measure_retrieval",
    "load_image_encoder": (
        "align_keras.embedding.image_encoder:load_image_encoder"
    ),
    "load_preprocessor": (
        "align_keras.preprocessing:AlignPreprocessor.from_preset"
    ),
    "open_foreign_weights": "align_keras.interop:open_foreign_weights",
}.items():
    registry.register(_name, _place)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

saved_classes.import_on_lookup(__name__)
