from align_keras.backend.plain_maps import normalize_and_silu
from align_keras.backend.plain_maps import normalize_batch
from align_keras.backend.plain_maps import silu
from align_keras.backend.plain_optimizer import ReplicaClipping
from align_keras.backend.torch.convolutions import convolve
from align_keras.backend.torch.convolutions import convolve_depthwise
from align_keras.backend.torch.functional import checkpoint
from align_keras.backend.torch.functional import compile_inference
from align_keras.backend.torch.functional import custom_gradient
from align_keras.backend.torch.functional import densify
from align_keras.backend.torch.functional import require
from align_keras.backend.torch.functional import scan
from align_keras.backend.torch.functional import sum_of_squares
from align_keras.backend.torch.functional import value_and_gradients
from align_keras.backend.torch.functional import values
from align_keras.backend.torch.functional import wait_for
from align_keras.backend.torch.replicas import all_gather
from align_keras.backend.torch.replicas import all_reduce_sum
from align_keras.backend.torch.replicas import num_replicas
from align_keras.backend.torch.replicas import num_shards
from align_keras.backend.torch.replicas import replica_index
from align_keras.backend.torch.replicas import replicate
from align_keras.backend.torch.trainer import Trainer

__all__ = [
    "ReplicaClipping",
    "Trainer",
    "all_gather",
    "all_reduce_sum",
    "checkpoint",
    "compile_inference",
    "custom_gradient",
    "convolve",
    "convolve_depthwise",
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
