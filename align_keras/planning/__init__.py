import importlib.util

# Keras would say that there is no JAX, but not how to get what is needed.
if importlib.util.find_spec("jax") is None:
    raise ImportError(
        'Planning needs JAX. Run `pip install "align-keras[plan]"`.'
    )

from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import plan
from align_keras.planning.search import compare
from align_keras.planning.search import search
from align_keras.planning.store import PlanStore

__all__ = ["DoesNotFit", "PlanStore", "compare", "plan", "search"]
