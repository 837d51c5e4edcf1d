"""The first run: drawn scenes, a small model, and what it has learned."""

from align_keras.quickstart.run import REQUIRED_TIMES_CHANCE
from align_keras.quickstart.run import run_quickstart

__all__ = ["REQUIRED_TIMES_CHANCE", "run_quickstart"]
