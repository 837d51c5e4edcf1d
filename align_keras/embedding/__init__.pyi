from .embed_files import embed as embed
from .embed_streams import embed_images as embed_images
from .embed_streams import embed_texts as embed_texts
from .embedder import Embedder as Embedder
from .embedder import as_embedder as as_embedder
from .loading import load_embedder as load_embedder
from .score_files import score as score
