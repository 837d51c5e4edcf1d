"""Search over embedded pictures."""

from align_keras.search.query import compose_query
from align_keras.search.query import top_k

__all__ = ["compose_query", "top_k"]
