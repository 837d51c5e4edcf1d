"""A vocabulary of many scripts: what it is learned from has no [UNK]."""

import numpy as np
import pytest
import tensorflow as tf

from align_keras.cli import main
from align_keras.io.word_pieces import read_vocabulary
from align_keras.preprocessing import AlignTokenizer

# Scripts by their code points. Many have marks that are no letters.
SCRIPTS = {
    "Latin": (0x61, 0x17F),
    "Greek": (0x386, 0x3CE),
    "Cyrillic": (0x410, 0x45F),
    "Armenian": (0x561, 0x586),
    "Hebrew": (0x591, 0x5EA),
    "Arabic": (0x620, 0x652),
    "Devanagari": (0x900, 0x94F),
    "Bengali": (0x980, 0x9CD),
    "Tamil": (0xB82, 0xBCD),
    "Telugu": (0xC00, 0xC4D),
    "Thai": (0xE01, 0xE4E),
    "Lao": (0xE81, 0xECD),
    "Tibetan": (0xF40, 0xFBC),
    "Burmese": (0x1000, 0x103F),
    "Georgian": (0x10D0, 0x10F0),
    "Ethiopic": (0x1200, 0x135A),
    "Khmer": (0x1780, 0x17D3),
    "Kana": (0x3041, 0x30FE),
}
UNSPACED = ("Thai", "Lao", "Burmese", "Khmer", "Kana", "Tibetan")


def characters(encoding, rows):
    """All characters of a national standard of two bytes."""
    pairs = (bytes((row, cell)) for row in rows for cell in range(0xA1, 0xFF))
    return [c for pair in pairs if (c := pair.decode(encoding, "ignore"))]


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    lines = []

    def write(letters, script):
        """Each letter at the beginning of a word and within one."""
        blank = "" if script in UNSPACED else " "
        for _ in range(4):
            letters = list(rng.permutation(letters))
            words = [
                a + b
                for a, b in zip(letters, np.roll(letters, -1), strict=True)
            ]
            for start in range(0, len(words), 20):
                lines.append(blank.join(words[start : start + 20]))

    for script, (first, last) in SCRIPTS.items():
        letters = [chr(c) for c in range(first, last + 1)]
        write([c for c in letters if c.isprintable()], script)
    write(characters("gb2312", range(0xB0, 0xF8)), "Chinese")
    write(characters("euc_kr", range(0xB0, 0xC9)), "Korean")
    return lines


@pytest.fixture(scope="module")
def vocabulary(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", "utf-8")
    output = folder / "vocabulary.txt"
    words = ["vocab", str(folder / "texts.txt"), "--output", str(output)]
    assert main([*words, "--multilingual"]) == 0
    return read_vocabulary(output)


def test_no_text_of_many_scripts_is_unknown(texts, vocabulary):
    assert len(vocabulary) == len(set(vocabulary)) <= 250_000
    pieces = [piece.removeprefix("##") for piece in vocabulary]
    assert max(len(piece.encode()) for piece in pieces) <= 256
    tokenizer = AlignTokenizer(vocabulary, strip_accents=False)
    unknown = tokenizer.token_to_id("[UNK]")
    ids = tokenizer(texts)
    for text, row in zip(texts, ids, strict=True):
        assert unknown not in row, text
    # The graph takes the vocabulary, and cuts each text alike.
    (found,) = tf.data.Dataset.from_tensors(texts).map(tokenizer)
    assert found.to_list() == ids


def test_marks_are_read_or_stripped_as_the_setting_says(vocabulary):
    """A vowel sign of Hindi, a tone of Thai and a voiced kana are no accents
    that may go; nor does a Korean syllable come apart."""
    pairs = [("की", "का"), ("ไม้", "ไม"), ("が", "か"), ("한", "하")]
    kept = AlignTokenizer(vocabulary, strip_accents=False)
    for one, other in pairs:
        assert kept([one]) != kept([other])
    stripped = AlignTokenizer(vocabulary)
    assert stripped(["が"]) == stripped(["か"])
    assert len(kept(["한"])[0]) == 1
