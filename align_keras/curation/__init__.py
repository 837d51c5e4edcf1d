"""Cleaning of picture–text pairs by rules, and vocabularies of the rest."""

from align_keras.curation.config import config_names
from align_keras.curation.config import load_config
from align_keras.curation.curate import curate
from align_keras.curation.explain import explain
from align_keras.curation.explain import print_sql

__all__ = ["config_names", "curate", "explain", "load_config", "print_sql"]
