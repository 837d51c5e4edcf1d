"""Text towers with SentencePiece or byte pairs, eagerly, mapped, exported."""

import io

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras.interop.huggingface_processor import write_processor
from align_keras.serving import export_towers

TEXTS = ["a red bus", "the blue dog and the red bus", ""]
LENGTH = 8


def sentence_pieces():
    """Bytes of a model of 40 pieces, with the special ones of ALBERT."""
    sentencepiece = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:2] * 9),
        model_writer=file,
        vocab_size=28,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="<pad>",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        user_defined_symbols="[MASK]",
        minloglevel=2,
    )
    return file.getvalue()


def byte_pairs(specials):
    letters = sorted(set("".join(TEXTS)) - {" "})
    merges = ["r e", "re d</w>", "b u", "bu s</w>", "t h", "th e</w>"]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        *specials,
    ]
    return {token: i for i, token in enumerate(tokens)}, merges


def albert():
    tokenizer = keras_hub.tokenizers.AlbertTokenizer(sentence_pieces())
    return AlignPreprocessor(tokenizer), (2, 3, 0)


def clip():
    vocabulary, merges = byte_pairs(["<|startoftext|>", "<|endoftext|>"])
    tokenizer = keras_hub.tokenizers.CLIPTokenizer(
        vocabulary, merges, pad_with_end_token=True
    )
    end = vocabulary["<|endoftext|>"]
    return AlignPreprocessor(tokenizer), (end - 1, end, end)


def packed(packer):
    tokenizer = keras_hub.tokenizers.SentencePieceTokenizer(sentence_pieces())
    return AlignPreprocessor(tokenizer, packer=packer)


def start_end():
    packer = keras_hub.layers.StartEndPacker(LENGTH, end_value=3)
    return packed(packer), (None, 3, 0)


def segments():
    packer = keras_hub.layers.MultiSegmentPacker(
        LENGTH, start_value=2, end_value=3, pad_value=0
    )
    return packed(packer), (2, 3, 0)


def test_other_runtimes_are_told_the_current_length():
    preprocessor, _ = start_end()
    preprocessor.sequence_length = LENGTH + 3
    told = preprocessor.describe_text()["packer"]["sequence_length"]
    (row,) = preprocessor.tokenize(["a red bus"])["token_ids"]
    assert told == len(row) == LENGTH + 3


@pytest.fixture(scope="module", params=[albert, clip, start_end, segments])
def case(request):
    preprocessor, around = request.param()
    preprocessor.image_converter = AlignImageConverter(image_size=8)
    preprocessor.sequence_length = LENGTH
    return preprocessor, around


@pytest.fixture(scope="module")
def model(case):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    return AlignDualEncoder(
        keras.Model(images, keras.layers.Conv2D(6, 3)(images)),
        keras.Model(
            {"token_ids": tokens}, keras.layers.Embedding(60, 6)(tokens)
        ),
        text_pooling="average",
        preprocessor=case[0],
    )


def expected_tokens(case):
    """What the tokenizer says of each text, and what goes around it."""
    preprocessor, (start, end, padding) = case
    rows, masks = [], []
    for text in TEXTS:
        ids = np.asarray(ops.convert_to_numpy(preprocessor.tokenizer(text)))
        room = LENGTH - 1 - (start is not None)
        row = [*ids.tolist()[:room], end]
        row = row if start is None else [start, *row]
        masks.append([1] * len(row) + [0] * (LENGTH - len(row)))
        rows.append(row + [padding] * (LENGTH - len(row)))
    return {"token_ids": rows, "padding_mask": masks}


def test_eagerly_and_mapped(case):
    import tensorflow as tf

    preprocessor, _ = case
    expected = expected_tokens(case)
    assert len(set(map(tuple, expected["token_ids"]))) == 3
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    batch = next(iter(data.batch(3).map(preprocessor.tokenize)))
    rows = list(data.map(preprocessor.tokenize).batch(3))[0]
    for found in (preprocessor.tokenize(TEXTS), batch, rows):
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            assert keras.backend.standardize_dtype(found[name].dtype) == "int32"
            np.testing.assert_array_equal(
                ops.convert_to_numpy(found[name]), value
            )


def test_saved_with_the_model(model, tmp_path):
    expected = ops.convert_to_numpy(model.encode_text(TEXTS))
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for again in (
        keras.saving.load_model(tmp_path / "model.keras"),
        AlignDualEncoder.from_preset(str(tmp_path / "preset")),
    ):
        parts = (m.preprocessor.tokenizer for m in (model, again))
        assert len({type(part) for part in parts}) == 1
        np.testing.assert_allclose(
            ops.convert_to_numpy(again.encode_text(TEXTS)), expected, atol=1e-6
        )


def test_exported(model, tmp_path):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    model.export(str(tmp_path / "model"))
    served = tf.saved_model.load(str(tmp_path / "model"))
    found = served.signatures["encode_text"](texts=tf.constant(TEXTS))
    np.testing.assert_allclose(
        found["embeddings"],
        ops.convert_to_numpy(model.encode_text(TEXTS)),
        atol=1e-6,
    )


def test_portable_towers_come_with_the_vocabulary(model, tmp_path):
    pytest.importorskip("tf2onnx")
    names = export_towers(model, tmp_path / "towers", "onnx")
    kind = type(model.preprocessor.tokenizer)
    pieces = issubclass(kind, keras_hub.tokenizers.SentencePieceTokenizer)
    assert ("vocabulary.spm" if pieces else "merges.txt") in names


def test_hugging_face_has_no_place_for_them(case, tmp_path):
    with pytest.raises(ValueError, match="can hold only a BERT tokenizer"):
        write_processor(case[0], tmp_path)


def test_what_does_not_fit_is_refused():
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    with pytest.raises(ValueError, match="`ByteTokenizer` has no end"):
        AlignPreprocessor(tokenizer).tokenize(TEXTS)
    packer = keras_hub.layers.StartEndPacker(9)
    with pytest.raises(ValueError, match="sequence_length=64.*=9"):
        AlignPreprocessor(tokenizer, sequence_length=64, packer=packer)
    with pytest.raises(ValueError, match="packer=<function"):
        AlignPreprocessor(tokenizer, packer=sentence_pieces)
