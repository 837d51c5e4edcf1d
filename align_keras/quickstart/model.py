"""Define the small ALIGN model that the quickstart trains."""

from align_keras.models import AlignDualEncoder
from align_keras.models import BertTextEncoder
from align_keras.models import EfficientNetBackbone


def quickstart_model(vocabulary_size: int) -> AlignDualEncoder:
    """Create the small ALIGN model of the quickstart, with fresh weights.

    Both towers are small versions of the paper's: an EfficientNet with seven
    blocks, and a BERT with two layers whose token outputs are averaged.

    Args:
        vocabulary_size: int. Number of tokens.

    Returns:
        An `align_keras.AlignDualEncoder` without a preprocessor.
    """
    return AlignDualEncoder(
        image_encoder=EfficientNetBackbone(0.35, 0.25, dropout=0.0),
        text_encoder=BertTextEncoder(
            vocabulary_size,
            num_layers=2,
            num_heads=4,
            hidden_dim=96,
            intermediate_dim=192,
            dropout=0.0,
            max_sequence_length=64,
        ),
        embedding_dim=128,
        initial_temperature=0.07,
        text_pooling="average",
    )
