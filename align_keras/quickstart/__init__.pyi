from .first_run import REQUIRED_TIMES_CHANCE as REQUIRED_TIMES_CHANCE
from .first_run import run_quickstart as run_quickstart
from .scenes import write_scenes as write_scenes
