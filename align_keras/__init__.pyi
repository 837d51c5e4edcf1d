from .losses import ContrastiveLoss as ContrastiveLoss
from .losses import SigmoidLoss as SigmoidLoss
from .losses import cross_replica_gather as cross_replica_gather
from .models import AlignDualEncoder as AlignDualEncoder
from .models import Alignment as Alignment
from .models import BertTextEncoder as BertTextEncoder
from .models import EfficientNetBackbone as EfficientNetBackbone
from .models import EfficientNetL2Backbone as EfficientNetL2Backbone
from .models import ModalityGap as ModalityGap
from .models import PairRecall as PairRecall
from .models import Uniformity as Uniformity
from .models import list_presets as list_presets
from .models import list_pretrained_presets as list_pretrained_presets
from .optimizers import Lamb as Lamb
from .optimizers import WarmupLinearDecay as WarmupLinearDecay
from .preprocessing import AlignImageConverter as AlignImageConverter
from .preprocessing import AlignPreprocessor as AlignPreprocessor
from .preprocessing import AlignTokenizer as AlignTokenizer

__version__: str
