"""Models as embedders, streams of images and texts, and vectors on disk."""

from align_keras.embedding.embed_files import embed
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import load_embedder
from align_keras.embedding.streams import embed_images
from align_keras.embedding.streams import embed_texts

__all__ = [
    "Embedder",
    "as_embedder",
    "embed",
    "embed_images",
    "embed_texts",
    "load_embedder",
]
