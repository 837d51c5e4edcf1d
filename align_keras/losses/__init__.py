from align_keras.losses.contrastive_loss import ContrastiveLoss
from align_keras.losses.gather import cross_replica_gather
from align_keras.losses.sigmoid_loss import SigmoidLoss

__all__ = ["ContrastiveLoss", "SigmoidLoss", "cross_replica_gather"]
