"""Search over embedded images."""

from align_keras.search.exact import top_k
from align_keras.search.index import Index
from align_keras.search.index_writer import build_index
from align_keras.search.index_writer import write_index
from align_keras.search.query import combine_vectors
from align_keras.search.query import compose_query
from align_keras.search.search_index import draw_results
from align_keras.search.search_index import search

__all__ = [
    "Index",
    "build_index",
    "combine_vectors",
    "compose_query",
    "draw_results",
    "search",
    "top_k",
    "write_index",
]
