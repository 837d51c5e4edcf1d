from align_keras.optimizers.exclusions import describe_exclusions
from align_keras.optimizers.lamb import Lamb
from align_keras.optimizers.standard import SGD
from align_keras.optimizers.standard import Adam
from align_keras.optimizers.standard import AdamW
from align_keras.optimizers.warmup_linear_decay import WarmupLinearDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Lamb",
    "WarmupLinearDecay",
    "describe_exclusions",
]
