from align_keras.optimizers.lamb import Lamb
from align_keras.optimizers.warmup_linear_decay import WarmupLinearDecay

__all__ = ["Lamb", "WarmupLinearDecay"]
