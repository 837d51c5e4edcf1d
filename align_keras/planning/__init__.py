from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import plan
from align_keras.planning.search import compare
from align_keras.planning.search import search
from align_keras.planning.store import PlanStore

__all__ = ["DoesNotFit", "PlanStore", "compare", "plan", "search"]
