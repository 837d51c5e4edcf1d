"""Tokenize texts with WordPiece, like BERT."""

import os

import keras
import keras_hub
import numpy as np

from align_keras import keras_hub_internals
from align_keras.io.word_pieces import MAX_WORD_LENGTH
from align_keras.io.word_pieces import SPECIAL_TOKENS
from align_keras.io.word_pieces import learn_word_pieces
from align_keras.io.word_pieces import read_vocabulary
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.preprocessing import bert_text
from align_keras.preprocessing.tf_graph import in_tf_graph


@keras.saving.register_keras_serializable(package="align_keras")
class AlignTokenizer(presets.StoredPart, keras_hub.tokenizers.BertTokenizer):
    """BERT's WordPiece tokenizer with the settings of ALIGN's text tower.

    Text is lowercased, stripped of accents, and split at white space and
    punctuation. Each word is then cut into the longest pieces in the
    vocabulary (section 4.1 of the paper: the uncased BERT vocabulary). Ids
    equal those of Hugging Face's BERT tokenizer. In a TensorFlow graph,
    tensorflow-text does the work; elsewhere neither TensorFlow nor
    tensorflow-text is needed.

    Args:
        vocabulary: list of strings, or path of a text file with one token per
            line. It must contain `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and
            `[MASK]`.
        lowercase: bool. Whether to lowercase texts. Defaults to `True`.
        strip_accents: bool. Whether to remove accents, so that "café" and
            "cafe" are the same word. This also removes the vowel signs of
            scripts such as those of Hindi and Thai, and takes Korean
            syllables apart; use `False` for such languages. Defaults to
            `True`.
        split_on_cjk: bool. Whether each Chinese character is a separate word.
            Defaults to `True`.
        special_tokens_in_strings: bool. Whether special tokens such as
            `"[MASK]"` are recognised in a text, as in Hugging Face, or
            treated like other words. Defaults to `False`.

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
        if (
            kwargs.get("sequence_length") is not None
            or not kwargs.get("split", True)
            or kwargs.get("dtype") == "string"
        ):
            raise ValueError(
                "`AlignTokenizer` turns whole texts into ids and leaves "
                "padding to `AlignPreprocessor`: `sequence_length`, `split` "
                f'and `dtype="string"` are not supported. Received: {kwargs}'
            )
        if kwargs.get("special_tokens"):
            raise ValueError(
                "The special tokens are those of BERT, "
                f"{', '.join(SPECIAL_TOKENS)}: leave out `special_tokens`. "
                f"Received: special_tokens={kwargs['special_tokens']!r}"
            )
        if isinstance(vocabulary, os.PathLike):
            vocabulary = os.fspath(vocabulary)
        super().__init__(
            vocabulary=vocabulary,
            lowercase=lowercase,
            strip_accents=strip_accents,
            **kwargs,
        )

    def set_vocabulary(self, vocabulary):
        """Set the vocabulary: a list of strings, a path, or `None`."""
        is_path = isinstance(vocabulary, str)
        if is_path and not keras_hub_internals.in_safe_mode():
            vocabulary = read_vocabulary(vocabulary)
        super().set_vocabulary(vocabulary)

    @classmethod
    def from_preset(cls, preset, **kwargs):
        """Create the tokenizer of a preset.

        Args:
            preset: string. A local preset directory, a handle that KerasHub
                supports, or a directory of another library with a vocabulary
                (docs/foreign_weights.md).
            **kwargs: Arguments of the constructor that replace those of the
                preset.

        Returns:
            An `AlignTokenizer`.
        """
        return presets.load_part(cls, preset, "tokenizer", **kwargs)

    def tokenize(self, inputs):
        """Turn strings into token ids, without special tokens around them.

        Args:
            inputs: string, or list, array or string tensor of strings.

        Returns:
            An int32 array of ids for one string, or a list of lists of ids
            for several. In a TensorFlow graph an int32 tensor, which is
            ragged for several strings.
        """
        self._check_vocabulary()
        if in_tf_graph():
            return self._tokenize_in_graph(inputs)
        # Bytes that are not UTF-8 become U+FFFD, which normalisation drops, as
        # in a graph.
        strings, batched, shape = keras_hub_internals.to_strings(
            inputs, errors="replace"
        )
        ids = [self._ids(text) for text in strings]
        if shape is not None:
            return keras_hub_internals.restore_outer_shape(ids, shape)
        return ids if batched else np.array(ids[0], "int32")

    def _normalization(self):
        return {
            "lowercase": self.lowercase,
            "strip_accents": self.strip_accents,
            "split_on_cjk": self.split_on_cjk,
        }

    def _special_pattern(self):
        if not self.special_tokens_in_strings:
            return ""
        return bert_text.special_pattern(SPECIAL_TOKENS)

    def _ids(self, text):
        ids = []
        pieces = bert_text.split_special(text, self._special_pattern())
        for piece, is_special in pieces:
            if is_special:
                ids.append(self.token_to_id(piece))
                continue
            piece = bert_text.normalize(piece, **self._normalization())
            for word in bert_text.split_words(piece):
                ids += self._word_ids(word)
        return ids

    def _word_ids(self, word):
        """Cut a word into the longest known pieces, from its start."""
        unknown = [self._token_to_id_map[self.oov_token]]
        if len(word) > MAX_WORD_LENGTH:
            return unknown
        ids, start = [], 0
        while start < len(word):
            prefix = self.suffix_indicator if start else ""
            for end in range(len(word), start, -1):
                found = self._token_to_id_map.get(prefix + word[start:end])
                if found is not None:
                    break
            else:
                return unknown
            ids.append(found)
            start = end
        return ids

    def _set_vocabulary_tf(self):
        import tensorflow_text as tf_text

        self._fast_word_piece = tf_text.FastWordpieceTokenizer(
            vocab=self.vocabulary,
            token_out_type=self.compute_dtype,
            suffix_indicator=self.suffix_indicator,
            unknown_token=self.oov_token,
            no_pretokenization=True,
            support_detokenization=True,
            # The limit counts characters, which have up to four bytes.
            max_bytes_per_word=4 * MAX_WORD_LENGTH,
        )

    def _tokenize_in_graph(self, texts):
        import tensorflow as tf

        self._maybe_initialized_tf()
        texts = tf.convert_to_tensor(texts)
        flat = tf.reshape(texts, (-1,))
        pattern = self._special_pattern()
        if pattern:
            pieces, is_special = bert_text.split_special_in_graph(flat, pattern)
            flat = tf.where(is_special, "", pieces.flat_values)
        words = bert_text.split_words_in_graph(
            bert_text.normalize_in_graph(flat, **self._normalization())
        )
        lengths = tf.strings.length(words.flat_values, "UTF8_CHAR")
        too_long = lengths > MAX_WORD_LENGTH
        words = words.with_flat_values(
            tf.where(too_long, self.oov_token, words.flat_values)
        )
        if pattern:
            specials = tf.RaggedTensor.from_row_lengths(
                tf.boolean_mask(pieces.flat_values, is_special),
                tf.cast(is_special, tf.int64),
            )
            words = tf.concat([specials, words], axis=1)
            words = pieces.with_flat_values(words).merge_dims(1, 2)
        ids = self._fast_word_piece.tokenize(words).merge_dims(-2, -1)
        return ids[0] if texts.shape.rank == 0 else ids

    def get_config(self):
        config = super().get_config()
        # The only argument that the base class does not save.
        config["split_on_cjk"] = self.split_on_cjk
        return config

    @staticmethod
    def learn_vocabulary(
        texts, vocabulary_size, strip_accents=True, lowercase=True
    ):
        """Learn a WordPiece vocabulary from captions.

        The same texts give the same vocabulary in any order. Texts are split
        into words as in the tokenizer; pieces that occur only once are not
        learned. The trainer of Hugging Face's `tokenizers` does the work.

        Args:
            texts: iterable of strings. It is read once; memory holds only the
                distinct words.
            vocabulary_size: int. The maximum number of tokens. Few texts
                yield fewer tokens. Only the most frequent characters are
                included: at most a twentieth of the vocabulary or 1000,
                whichever is more.
            strip_accents: bool. Whether to remove accents first, as in a
                tokenizer with that setting. Defaults to `True`.
            lowercase: bool. Whether to lowercase texts first, as in a
                tokenizer with that setting. Defaults to `True`.

        Returns:
            list of strings. `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]` come
            first.

        Raises:
            ValueError: `vocabulary_size` leaves no room for words, or `texts`
                is a string.
        """
        return learn_word_pieces(
            texts, vocabulary_size, strip_accents, lowercase
        )
