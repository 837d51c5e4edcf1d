from align_keras.losses.contrastive_loss import ContrastiveLoss
from align_keras.losses.gather import cross_replica_gather

__all__ = ["ContrastiveLoss", "cross_replica_gather"]
