from .contrastive_loss import ContrastiveLoss as ContrastiveLoss
from .gather import cross_replica_gather as cross_replica_gather
from .sigmoid_loss import SigmoidLoss as SigmoidLoss
