"""The first run: drawn scenes, a small model, and what it has learned."""

from align_keras.quickstart.first_run import REQUIRED_TIMES_CHANCE
from align_keras.quickstart.first_run import run_quickstart
from align_keras.quickstart.scenes import write_scenes

__all__ = ["REQUIRED_TIMES_CHANCE", "run_quickstart", "write_scenes"]
