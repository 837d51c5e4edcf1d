"""Predict the memory, time and cost of a training run."""

import importlib.util

from align_keras.io.optional import require

# Keras would report that JAX is missing, but not which extra installs it.
if importlib.util.find_spec("jax") is None:
    require("jax", extra="plan")

from align_keras.planning.compare_chips import compare_chips
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.largest_batch import find_largest_batch
from align_keras.planning.plan import plan
from align_keras.planning.plan_store import PlanStore

__all__ = [
    "DoesNotFit",
    "PlanStore",
    "compare_chips",
    "find_largest_batch",
    "plan",
]
