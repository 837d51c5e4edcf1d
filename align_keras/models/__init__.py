from align_keras.models.align_dual_encoder import AlignDualEncoder
from align_keras.models.bert_text_encoder import BertTextEncoder
from align_keras.models.efficientnet_backbone import EfficientNetBackbone
from align_keras.models.efficientnet_l2_backbone import EfficientNetL2Backbone
from align_keras.models.ghost_batch_normalization import GhostBatchNormalization
from align_keras.models.pair_recall import PairRecall
from align_keras.models.presets import list_presets

__all__ = [
    "AlignDualEncoder",
    "BertTextEncoder",
    "EfficientNetBackbone",
    "EfficientNetL2Backbone",
    "GhostBatchNormalization",
    "PairRecall",
    "list_presets",
]
