from .exclusions import describe_exclusions as describe_exclusions
from .lamb import Lamb as Lamb
from .standard import SGD as SGD
from .standard import Adam as Adam
from .standard import AdamW as AdamW
from .warmup_linear_decay import WarmupLinearDecay as WarmupLinearDecay
