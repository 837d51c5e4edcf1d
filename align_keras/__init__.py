"""ALIGN in Keras: curate, train, evaluate, serve and search image and text.

The public names are loaded when they are first used, so that importing the
package costs nothing and chooses no Keras backend.
"""

import os

import lazy_loader

from align_keras import registry
from align_keras import saved_classes

# TensorFlow reads these when it is imported. Its faster convolutions are on by
# themselves on few processors only. Its own allocator keeps the memory of large
# tensors from step to step, where the C library's gives it back and has it
# cleared anew, which takes a third of a training step; by itself it would stop
# at 64 GiB.
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
