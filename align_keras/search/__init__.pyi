from .exact import top_k as top_k
from .index import Index as Index
from .index_writer import build_index as build_index
from .index_writer import write_index as write_index
from .query import combine_vectors as combine_vectors
from .query import compose_query as compose_query
from .search_index import draw_results as draw_results
from .search_index import search as search
