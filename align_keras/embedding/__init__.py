"""Models as embedders, streams of images and texts, and vectors on disk."""

from align_keras.embedding.embed_files import embed
from align_keras.embedding.embed_streams import embed_images
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.loading import load_embedder

__all__ = [
    "Embedder",
    "as_embedder",
    "embed",
    "embed_images",
    "embed_texts",
    "load_embedder",
]
