"""Clean image–text pairs by rules, and learn vocabularies from the rest."""

from align_keras.curation.config import config_names
from align_keras.curation.config import load_config
from align_keras.curation.curate import curate
from align_keras.curation.download import download
from align_keras.curation.download import read_downloads
from align_keras.curation.explain import explain
from align_keras.curation.sql import print_sql
from align_keras.curation.vocabulary import learn_vocabulary

__all__ = [
    "config_names",
    "curate",
    "download",
    "explain",
    "learn_vocabulary",
    "load_config",
    "print_sql",
    "read_downloads",
]
