"""ALIGN in Keras: curate, train, evaluate, serve and search image and text.

The public names are loaded when they are first used, so that importing the
package costs nothing and chooses no Keras backend.
"""

import importlib
import os

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

_PUBLIC = {
    "align_keras.models": (
        "AlignDualEncoder",
        "BertTextEncoder",
        "EfficientNetBackbone",
        "EfficientNetL2Backbone",
        "PairRecall",
        "list_presets",
    ),
    "align_keras.losses": (
        "ContrastiveLoss",
        "SigmoidLoss",
        "cross_replica_gather",
    ),
    "align_keras.optimizers": ("Lamb", "WarmupLinearDecay"),
    "align_keras.preprocessing": (
        "AlignImageConverter",
        "AlignPreprocessor",
        "AlignTokenizer",
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)

saved_classes.import_on_lookup(_PUBLIC)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module `align_keras` has no attribute `{name}`")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
