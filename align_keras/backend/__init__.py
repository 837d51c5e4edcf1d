"""The only model code that imports TensorFlow, JAX or torch.

Each backend is one package with the same modules and functions, so the models,
losses and optimizers only use `keras.ops` and this package.
"""

import importlib

import keras

# The names that every backend offers, by module.
OFFERED = {
    "convolutions": ("convolve", "convolve_depthwise"),
    "functional": (
        "compile_inference",
        "custom_gradient",
        "densify",
        "lengths_may_vary",
        "mark_random_state",
        "recompute",
        "require",
        "scan",
        "sum_of_squares",
        "traced_once",
        "value_and_gradients",
        "values",
        "wait_for",
        "without_gradients",
    ),
    "modules": ("Module",),
    "normalization": ("normalize_and_silu", "normalize_batch", "silu"),
    "optimizer": ("AdamStep", "ReplicaClipping"),
    "replicas": (
        "all_gather",
        "all_reduce_sum",
        "num_replicas",
        "num_shards",
        "replica_index",
        "replicate",
    ),
    "trainer": ("Trainer",),
}
BACKENDS = ("tensorflow", "jax", "torch")

_MODULES = {name: module for module, names in OFFERED.items() for name in names}
__all__ = sorted(_MODULES)

if keras.config.backend() not in BACKENDS:
    raise ImportError(
        "align_keras runs on the `tensorflow`, `jax` and `torch` backends of "
        "Keras. "
        f"Received: backend={keras.config.backend()!r}. Set the environment "
        "variable KERAS_BACKEND to one of them before Python starts."
    )


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"`align_keras.backend` has no `{name}`")
    path = f"{__name__}.{keras.config.backend()}.{_MODULES[name]}"
    value = getattr(importlib.import_module(path), name)
    globals()[name] = value
    return value
