"""How good a model is: pure functions on arrays, and what runs them."""

from align_keras.evaluation.embed import embed_images
from align_keras.evaluation.embed import embed_texts
from align_keras.evaluation.embedder import Embedder
from align_keras.evaluation.embedder import as_embedder
from align_keras.evaluation.embedder import load_embedder
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_metrics
from align_keras.evaluation.runner import evaluate_retrieval

__all__ = [
    "Embedder",
    "as_embedder",
    "best_positive_ranks",
    "embed_images",
    "embed_texts",
    "evaluate_retrieval",
    "load_embedder",
    "retrieval_chance",
    "retrieval_metrics",
]
