from .align_dual_encoder import AlignDualEncoder as AlignDualEncoder
from .bert_text_encoder import BertTextEncoder as BertTextEncoder
from .efficientnet_backbone import EfficientNetBackbone as EfficientNetBackbone
from .efficientnet_l2_backbone import (
    EfficientNetL2Backbone as EfficientNetL2Backbone,
)
from .ghost_batch_normalization import (
    GhostBatchNormalization as GhostBatchNormalization,
)
from .pair_geometry import Alignment as Alignment
from .pair_geometry import ModalityGap as ModalityGap
from .pair_geometry import Uniformity as Uniformity
from .pair_recall import PairRecall as PairRecall
from .shipped_presets import list_presets as list_presets
from .shipped_presets import list_pretrained_presets as list_pretrained_presets
