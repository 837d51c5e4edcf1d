"""The only model-side code that names TensorFlow, JAX or torch.

Each backend is one package with the same functions, so that the models, losses
and optimizers above stay on `keras.ops`.
"""

import keras

if keras.config.backend() == "tensorflow":
    from align_keras.backend.tensorflow import ReplicaClipping
    from align_keras.backend.tensorflow import Trainer
    from align_keras.backend.tensorflow import all_gather
    from align_keras.backend.tensorflow import all_reduce_sum
    from align_keras.backend.tensorflow import checkpoint
    from align_keras.backend.tensorflow import compile_inference
    from align_keras.backend.tensorflow import convolve
    from align_keras.backend.tensorflow import convolve_depthwise
    from align_keras.backend.tensorflow import custom_gradient
    from align_keras.backend.tensorflow import densify
    from align_keras.backend.tensorflow import normalize_and_silu
    from align_keras.backend.tensorflow import normalize_batch
    from align_keras.backend.tensorflow import num_replicas
    from align_keras.backend.tensorflow import num_shards
    from align_keras.backend.tensorflow import replica_index
    from align_keras.backend.tensorflow import replicate
    from align_keras.backend.tensorflow import require
    from align_keras.backend.tensorflow import scan
    from align_keras.backend.tensorflow import silu
    from align_keras.backend.tensorflow import sum_of_squares
    from align_keras.backend.tensorflow import value_and_gradients
    from align_keras.backend.tensorflow import values
    from align_keras.backend.tensorflow import wait_for
elif keras.config.backend() == "jax":
    from align_keras.backend.jax import ReplicaClipping
    from align_keras.backend.jax import Trainer
    from align_keras.backend.jax import all_gather
    from align_keras.backend.jax import all_reduce_sum
    from align_keras.backend.jax import checkpoint
    from align_keras.backend.jax import compile_inference
    from align_keras.backend.jax import convolve
    from align_keras.backend.jax import convolve_depthwise
    from align_keras.backend.jax import custom_gradient
    from align_keras.backend.jax import densify
    from align_keras.backend.jax import normalize_and_silu
    from align_keras.backend.jax import normalize_batch
    from align_keras.backend.jax import num_replicas
    from align_keras.backend.jax import num_shards
    from align_keras.backend.jax import replica_index
    from align_keras.backend.jax import replicate
    from align_keras.backend.jax import require
    from align_keras.backend.jax import scan
    from align_keras.backend.jax import silu
    from align_keras.backend.jax import sum_of_squares
    from align_keras.backend.jax import value_and_gradients
    from align_keras.backend.jax import values
    from align_keras.backend.jax import wait_for
elif keras.config.backend() == "torch":
    from align_keras.backend.torch import ReplicaClipping
    from align_keras.backend.torch import Trainer
    from align_keras.backend.torch import all_gather
    from align_keras.backend.torch import all_reduce_sum
    from align_keras.backend.torch import checkpoint
    from align_keras.backend.torch import compile_inference
    from align_keras.backend.torch import convolve
    from align_keras.backend.torch import convolve_depthwise
    from align_keras.backend.torch import custom_gradient
    from align_keras.backend.torch import densify
    from align_keras.backend.torch import normalize_and_silu
    from align_keras.backend.torch import normalize_batch
    from align_keras.backend.torch import num_replicas
    from align_keras.backend.torch import num_shards
    from align_keras.backend.torch import replica_index
    from align_keras.backend.torch import replicate
    from align_keras.backend.torch import require
    from align_keras.backend.torch import scan
    from align_keras.backend.torch import silu
    from align_keras.backend.torch import sum_of_squares
    from align_keras.backend.torch import value_and_gradients
    from align_keras.backend.torch import values
    from align_keras.backend.torch import wait_for
else:
    raise ImportError(
        "align_keras runs on the `tensorflow`, `jax` and `torch` backends of "
        "Keras. "
        f"Received: backend={keras.config.backend()!r}. Set the environment "
        "variable KERAS_BACKEND to one of them before Python starts."
    )

__all__ = [
    "ReplicaClipping",
    "Trainer",
    "all_gather",
    "all_reduce_sum",
    "checkpoint",
    "compile_inference",
    "convolve",
    "convolve_depthwise",
    "custom_gradient",
    "densify",
    "normalize_and_silu",
    "normalize_batch",
    "num_replicas",
    "num_shards",
    "replica_index",
    "replicate",
    "require",
    "scan",
    "silu",
    "sum_of_squares",
    "value_and_gradients",
    "values",
    "wait_for",
]
