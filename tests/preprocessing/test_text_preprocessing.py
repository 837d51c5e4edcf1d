"""Tokens and the combined preprocessor."""

import json
import os
import subprocess
import sys
import textwrap
import unicodedata

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignPreprocessor
from align_keras.preprocessing import AlignTokenizer
from align_keras.preprocessing import bert_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "a", "red", "bus", "cafe", "##s", ",", "!", "日", "Red"]
TEXTS = [
    "A red bus",
    "buses",
    "Café, red!",
    "",
    "  red\tred\nred ",
    "日bus",
    "xyz",
    "red" * 60,
    "bus " * 10_000,
]


def _preprocessor(**options):
    options.setdefault("tokenizer", AlignTokenizer(VOCABULARY))
    options.setdefault("image_converter", AlignImageConverter(image_size=20))
    return AlignPreprocessor(**options)


def test_token_ids():
    tokens = _preprocessor(sequence_length=8).tokenize(TEXTS)
    expected = [
        [2, 5, 6, 7, 3, 0, 0, 0],
        [2, 1, 3, 0, 0, 0, 0, 0],  # no piece "##es"
        [2, 8, 10, 6, 11, 3, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 6, 6, 6, 3, 0, 0, 0],
        [2, 12, 7, 3, 0, 0, 0, 0],
        [2, 1, 3, 0, 0, 0, 0, 0],
        [2, 1, 3, 0, 0, 0, 0, 0],
        [2, 7, 7, 7, 7, 7, 7, 3],  # cut, with [SEP] kept
    ]
    np.testing.assert_array_equal(tokens["token_ids"], expected)
    np.testing.assert_array_equal(
        tokens["padding_mask"], np.not_equal(expected, 0)
    )
    for value in tokens.values():
        assert keras.backend.standardize_dtype(value.dtype) == "int32"


def test_graph_gives_the_same_tokens():
    preprocessor = _preprocessor()
    expected = preprocessor.tokenize(TEXTS)
    graph = tf.function(
        preprocessor.tokenize, input_signature=[tf.TensorSpec([None], "string")]
    )
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS)
    dataset = dataset.map(preprocessor.tokenize)
    assert dataset.element_spec["token_ids"].shape == (64,)
    dataset = next(iter(dataset.batch(len(TEXTS))))
    for name in ("token_ids", "padding_mask"):
        result = graph(tf.constant(TEXTS))[name]
        assert result.dtype == tf.int32
        np.testing.assert_array_equal(result, expected[name])
        np.testing.assert_array_equal(dataset[name], expected[name])


def characters():
    """All but those of large uniform blocks: ideographs, Hangul, private."""
    blocks = [(0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xD800, 0xF8FF)]
    blocks += [(0x20000, 0xDFFFF), (0xE1000, 0x10FFFF)]
    inside = {end for block in blocks for end in block if end != 0xD800}
    inside -= {0xD800, 0xDFFF}
    return [
        chr(code)
        for code in range(0x110000)
        if code in inside
        or not any(first <= code <= last for first, last in blocks)
    ]


@pytest.mark.parametrize(
    "settings",
    [(True, True, True), (True, False, True), (False, True, False)],
    ids=["as usual", "accents", "capitals"],
)
def test_python_and_the_graph_see_the_same_characters(settings):
    """Whatever version of Unicode each of their libraries knows."""
    every = [f"a{letter}b" for letter in characters()]
    texts = [" ".join(every[n : n + 50]) for n in range(0, len(every), 50)]
    check_words(texts, *settings)


def test_marks_of_any_age_in_any_order():
    generator = np.random.default_rng(0)
    letters = np.array(characters(), "object")
    marks = letters[[unicodedata.combining(c) > 0 for c in letters]]
    texts = []
    for _ in range(1500):
        word = [*generator.choice(marks, generator.integers(1, 5))]
        word += [*generator.choice(letters, generator.integers(1, 4))]
        generator.shuffle(word)
        texts.append("e" + "".join(word))
    check_words(texts, True, True, True)


def check_words(texts, lowercase, strip_accents, split_on_cjk):
    settings = (lowercase, strip_accents, split_on_cjk)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    def in_graph(texts):
        texts = bert_text.normalize_in_graph(texts, *settings)
        return bert_text.split_words_in_graph(texts)

    found = in_graph(tf.constant(texts)).to_list()
    for text, words in zip(texts, found, strict=True):
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        expected = bert_text.split_words(bert_text.normalize(text, *settings))
        assert [w.decode() for w in words if w] == expected, ascii(text)


def test_bytes_that_are_not_utf8_are_left_out_in_graphs_too():
    parts = [
        b"a",
        b"caf\xe9",
        b"\xff",
        b"\xc3",
        b"\xa9",
        b"\xe6\x97",
        b" ",
        b"!",
    ]
    # Half a character, one beyond Unicode, an overlong zero.
    parts += [
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\0",
        b"\xcc\x81",
    ]
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(parts), size=(1000, 6))
    texts = [b"".join(parts[n] for n in row) for row in chosen]
    check_words(texts, True, True, True)
    check_words(texts, True, False, False)
    # Also where Python gets them.
    tokenizer = AlignTokenizer(VOCABULARY)
    assert tokenizer([b"a\xff red\xe9"]) == [[5, 6]]


def test_one_string():
    tokens = _preprocessor().tokenize("a red bus")
    assert tokens["token_ids"].shape == (64,)
    np.testing.assert_array_equal(tokens["token_ids"][:6], [2, 5, 6, 7, 3, 0])


def test_tokenizer_settings_matter_and_survive():
    tokenizer = AlignTokenizer(
        VOCABULARY, lowercase=False, strip_accents=False, split_on_cjk=False
    )
    config = keras.saving.serialize_keras_object(tokenizer)
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_vocabulary(VOCABULARY)
    assert copy.get_config() == tokenizer.get_config()
    for one in (tokenizer, copy):
        assert one.split_on_cjk is False
        result = [list(map(int, ids)) for ids in one(["Red Café", "日bus"])]
        assert result == [[13, 1], [1]]
    default = AlignTokenizer(VOCABULARY)
    result = [list(map(int, ids)) for ids in default(["Red Café", "日bus"])]
    assert result == [[6, 8], [12, 7]]


def test_vocabulary_without_special_tokens_is_refused():
    with pytest.raises(ValueError, match="SEP"):
        AlignTokenizer(["[PAD]", "[UNK]", "[CLS]", "[MASK]", "a"])


def test_vocabulary_file(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    assert AlignTokenizer(path).get_vocabulary() == VOCABULARY


def test_learn_vocabulary():
    texts = ["a red bus", "a blue bus", "Café buses in the red Café"] * 20
    first = AlignTokenizer.learn_vocabulary(iter(texts), 60)
    assert first == AlignTokenizer.learn_vocabulary(texts, 60)
    assert first[:5] == SPECIAL
    assert len(first) == len(set(first)) <= 60
    assert {"red", "bus", "cafe"} <= set(first)
    unknown = AlignTokenizer(first).token_to_id("[UNK]")
    ids = np.concatenate([np.asarray(i) for i in AlignTokenizer(first)(texts)])
    assert unknown not in ids
    with pytest.raises(ValueError, match="Received: 5"):
        AlignTokenizer.learn_vocabulary(texts, 5)
    cased = AlignTokenizer.learn_vocabulary(texts, 60, lowercase=False)
    assert {"Cafe", "red"} <= set(cased) and "cafe" not in cased
    ids = AlignTokenizer(cased, lowercase=False)(["Café"])
    assert [cased[i] for i in ids[0]] == ["Cafe"]


@pytest.mark.parametrize(
    "letters",
    ["กขคงจ", "កខគឃង", "abc", "\U00010330\U00010331", "é"],
    ids=["Thai", "Khmer", "ASCII", "Gothic", "accents"],
)
@pytest.mark.parametrize("length", [60, 86, 100, 101, 257, 5000])
def test_pieces_of_text_without_blanks_can_be_loaded(letters, length):
    """tensorflow-text takes pieces of 256 bytes at most."""
    word = (letters * length)[:length]
    texts = [word, f"{word} again", "again a word"] * 3
    vocabulary = AlignTokenizer.learn_vocabulary(texts, 400)
    pieces = [piece.removeprefix("##") for piece in vocabulary]
    assert max(len(piece.encode()) for piece in pieces) <= 256
    assert "again" in vocabulary
    tokenizer = AlignTokenizer(vocabulary)
    found = list(tf.data.Dataset.from_tensors(texts).map(tokenizer))[0]
    assert found.to_list() == tokenizer(texts)
    # A word that can be a piece as a whole has become one.
    fits = length <= 100 and len(word.encode()) <= 256
    assert (len(found[0]) == 1 and int(found[0, 0]) != 1) == fits


def test_both_inputs_or_one():
    preprocessor = _preprocessor(sequence_length=8)
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), "uint8")
    texts = ["a bus", "red"]
    both = preprocessor({"images": images, "texts": texts})
    assert set(both) == {"images", "token_ids", "padding_mask"}
    np.testing.assert_array_equal(
        both["images"], preprocessor.image_converter(images)
    )
    np.testing.assert_array_equal(
        both["token_ids"], preprocessor.tokenize(texts)["token_ids"]
    )
    assert set(preprocessor({"images": images})) == {"images"}
    assert set(preprocessor({"texts": texts})) == {"token_ids", "padding_mask"}
    graph = tf.function(lambda i, t: preprocessor({"images": i, "texts": t}))
    result = graph(tf.constant(images), tf.constant(texts))
    for name, value in both.items():
        np.testing.assert_allclose(result[name], value, atol=2e-5)


def test_unknown_and_missing_parts_are_named():
    with pytest.raises(ValueError, match="captions"):
        _preprocessor()({"captions": ["a"]})
    with pytest.raises(ValueError, match="tokenizer"):
        _preprocessor(tokenizer=None).tokenize("a")
    with pytest.raises(ValueError, match="image_converter"):
        _preprocessor(image_converter=None)({"images": np.zeros((9, 9, 3))})
    with pytest.raises(ValueError, match="Received: 2"):
        _preprocessor(sequence_length=2)
    with pytest.raises(ValueError, match=r"special_tokens=\['\[IMAGE\]'\]"):
        AlignTokenizer(VOCABULARY, special_tokens=["[IMAGE]"])


@keras.saving.register_keras_serializable(package="test_text_preprocessing")
class _Backbone(keras_hub.models.Backbone):
    """The smallest thing that a preset directory can be about."""

    def __init__(self, **kwargs):
        inputs = keras.Input((3,))
        super().__init__(inputs, keras.layers.Dense(1)(inputs), **kwargs)

    def get_config(self):
        return {"name": self.name}


def test_preset_round_trip(tmp_path, monkeypatch):
    for cls in (AlignPreprocessor, AlignTokenizer, AlignImageConverter):
        monkeypatch.setattr(cls, "backbone_cls", _Backbone)
    preprocessor = _preprocessor(
        sequence_length=9,
        tokenizer=AlignTokenizer(VOCABULARY, lowercase=False),
        image_converter=AlignImageConverter(image_size=20, antialias=True),
    )
    _Backbone().save_to_preset(tmp_path)
    preprocessor.save_to_preset(tmp_path)
    copy = AlignPreprocessor.from_preset(str(tmp_path))
    assert copy.sequence_length == 9
    assert copy.tokenizer.lowercase is False
    assert copy.tokenizer.get_vocabulary() == VOCABULARY
    assert (
        copy.image_converter.get_config()
        == preprocessor.image_converter.get_config()
    )
    np.testing.assert_array_equal(
        copy.tokenize(TEXTS)["token_ids"],
        preprocessor.tokenize(TEXTS)["token_ids"],
    )
    tokenizer = AlignTokenizer.from_preset(str(tmp_path))
    assert tokenizer.get_vocabulary() == VOCABULARY
    converter = AlignImageConverter.from_preset(str(tmp_path))
    assert converter.antialias is True


def test_inside_a_saved_model(tmp_path):
    preprocessor = _preprocessor()
    module = tf.Module()
    module.preprocessor = preprocessor
    module.serve = tf.function(
        lambda texts: preprocessor({"texts": texts}),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    result = tf.saved_model.load(str(tmp_path)).serve(tf.constant(TEXTS))
    np.testing.assert_array_equal(
        result["token_ids"], preprocessor.tokenize(TEXTS)["token_ids"]
    )


def test_jax_without_tensorflow(tmp_path):
    """The same results where TensorFlow cannot even be imported."""
    program = """
        import json
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "tensorflow_text"):
                    raise ImportError(name)

        sys.meta_path.insert(0, Refuse())
        import numpy as np

        from align_keras.preprocessing import AlignImageConverter
        from align_keras.preprocessing import AlignPreprocessor
        from align_keras.preprocessing import AlignTokenizer

        vocabulary, texts = json.loads(sys.stdin.read())
        preprocessor = AlignPreprocessor(
            AlignTokenizer(vocabulary), AlignImageConverter(image_size=20)
        )
        image = np.arange(30 * 40 * 3).reshape(1, 30, 40, 3) % 256
        result = preprocessor({"images": image, "texts": texts})
        crop = preprocessor.image_converter(
            image, training=True, seed=(1, 2)
        )
        assert crop.shape == (1, 20, 20, 3)
        assert "tensorflow" not in sys.modules
        np.savez(sys.argv[1], **{k: np.asarray(v) for k, v in result.items()})
    """
    path = tmp_path / "result.npz"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        input=json.dumps([VOCABULARY, TEXTS]),
        text=True,
        check=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    image = np.arange(30 * 40 * 3).reshape(1, 30, 40, 3) % 256
    expected = _preprocessor()({"images": image, "texts": TEXTS})
    with np.load(path) as result:
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value, atol=1e-4)
