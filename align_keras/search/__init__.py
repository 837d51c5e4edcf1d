"""Search over embedded pictures."""

from align_keras.search.exact import top_k
from align_keras.search.index import Index
from align_keras.search.index import build_index
from align_keras.search.index import write_index
from align_keras.search.query import combine
from align_keras.search.query import compose_query
from align_keras.search.search import draw_results
from align_keras.search.search import search

__all__ = [
    "Index",
    "build_index",
    "combine",
    "compose_query",
    "draw_results",
    "search",
    "top_k",
    "write_index",
]
