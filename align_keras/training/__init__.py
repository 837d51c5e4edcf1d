from align_keras.training.average import average
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe
from align_keras.training.strategies import make_strategy
from align_keras.training.train import train

__all__ = [
    "Recipe",
    "average",
    "load_recipe",
    "make_strategy",
    "train",
]
