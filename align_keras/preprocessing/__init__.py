"""From images and strings to what the model takes."""

from align_keras.preprocessing.image_converter import AlignImageConverter
from align_keras.preprocessing.preprocessor import AlignPreprocessor
from align_keras.preprocessing.tokenizer import AlignTokenizer

__all__ = ["AlignImageConverter", "AlignPreprocessor", "AlignTokenizer"]
