"""How good a model is: pure functions on arrays, and what runs them."""

from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_metrics
from align_keras.evaluation.runner import evaluate_retrieval

__all__ = [
    "best_positive_ranks",
    "evaluate_retrieval",
    "retrieval_chance",
    "retrieval_metrics",
]
