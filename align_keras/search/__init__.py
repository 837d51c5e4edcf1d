"""Search over embedded pictures."""

from align_keras.search.exact import top_k
from align_keras.search.query import compose_query

__all__ = ["compose_query", "top_k"]
