"""WordPiece tokens, as BERT uses them."""

import os

import keras
import keras_hub

from align_keras.models import AlignDualEncoder
from align_keras.preprocessing.word_pieces import learn_word_pieces

# In BERT's order; the padding token must have the id 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@keras.saving.register_keras_serializable(package="align_keras")
class AlignTokenizer(keras_hub.tokenizers.BertTokenizer):
    """BERT's WordPiece tokenizer with the settings of ALIGN's text tower.

    Text is lower-cased and stripped of accents, split at white space and
    punctuation, and each word is cut into the longest pieces that the
    vocabulary holds (section 4.1 of the paper: the uncased BERT vocabulary).
    In a TensorFlow graph the work is done by tensorflow-text; elsewhere
    neither TensorFlow nor tensorflow-text is needed.

    Args:
        vocabulary: list of strings, or path of a text file with one token per
            line. It must hold `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and
            `[MASK]`.
        lowercase: bool. Defaults to `True`.
        strip_accents: bool. Whether "café" and "cafe" are one word. Defaults
            to `True`.

    Example:

    ```python
    vocabulary = AlignTokenizer.learn_vocabulary(
        ["a red bus", "a blue bus"], vocabulary_size=40
    )
    tokenizer = AlignTokenizer(vocabulary)
    tokenizer(["a red bus"])
    ```
    """

    backbone_cls = AlignDualEncoder

    def __init__(
        self, vocabulary=None, lowercase=True, strip_accents=True, **kwargs
    ):
        if isinstance(vocabulary, os.PathLike):
            vocabulary = os.fspath(vocabulary)
        super().__init__(
            vocabulary=vocabulary,
            lowercase=lowercase,
            strip_accents=strip_accents,
            **kwargs,
        )

    def get_config(self):
        config = super().get_config()
        # The one argument that the base class does not save.
        config["split_on_cjk"] = self.split_on_cjk
        return config

    @staticmethod
    def learn_vocabulary(texts, vocabulary_size):
        """Learn a WordPiece vocabulary from captions.

        The same texts give the same vocabulary, in whatever order they come.
        Words are cut as the tokenizer cuts them; pieces that occur once are
        not learned. Done by the trainer of Hugging Face's `tokenizers`.

        Args:
            texts: iterable of strings; read once, never held as a whole. What
                is held in memory is every different word.
            vocabulary_size: int. The largest number of tokens wanted. Few
                texts give fewer. Of the characters, the most frequent ones
                are taken, at most a twentieth of the vocabulary or 1000,
                whichever is more.

        Returns:
            list of strings. `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]` come
            first.

        Raises:
            ValueError: `vocabulary_size` leaves no room for words.
        """
        if vocabulary_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                "`vocabulary_size` must be larger than the "
                f"{len(SPECIAL_TOKENS)} special tokens. "
                f"Received: {vocabulary_size}."
            )
        return learn_word_pieces(texts, vocabulary_size, SPECIAL_TOKENS)
