"""Normalise and activate feature maps with Keras operations."""

from align_keras.backend.plain_normalization import normalize_and_silu
from align_keras.backend.plain_normalization import normalize_batch
from align_keras.backend.plain_normalization import silu

__all__ = ["normalize_and_silu", "normalize_batch", "silu"]
