from .image_converter import AlignImageConverter as AlignImageConverter
from .preprocessor import AlignPreprocessor as AlignPreprocessor
from .tokenizer import AlignTokenizer as AlignTokenizer
