from .averaging import average as average
from .recipes import Recipe as Recipe
from .recipes import load_recipe as load_recipe
from .strategies import ShardedState as ShardedState
from .strategies import make_strategy as make_strategy
from .train_model import train as train
