"""The quickstart from end to end, much shortened."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from align_keras.cli import main
from align_keras.data.scene_captions import describe
from align_keras.data.scene_queries import ask_by_changes
from align_keras.data.scene_queries import ask_by_words
from align_keras.data.scenes import HELD_OUT_ARRANGEMENTS
from align_keras.data.scenes import HELD_OUT_PAIRS
from align_keras.data.scenes import Scene
from align_keras.data.scenes import Thing
from align_keras.data.scenes import plan_scenes
from align_keras.search.contact_sheet import RIGHT
