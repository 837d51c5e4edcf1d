"""Pixels and token ids against transformers' own `AlignProcessor`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="The comparison needs PyTorch")
transformers = pytest.importorskip(
    "transformers", reason="The comparison needs transformers"
)
tf = pytest.importorskip("tensorflow")

from huggingface_models import VOCABULARY
from huggingface_models import make_align
from huggingface_models import make_processor

from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras.interop import open_foreign_weights
from align_keras.interop.huggingface_processor import write_processor

TEXTS = [
    "",
    " ",
    "a red bus",
    "The CAFÉ, the naïve STRASSE; the Straße!",
    "straße ß ẞ ﬁ",
    "busses unable ables unXable redinging",
    "日本語 bus日bus本 ｂｕｓ 豈",
    "😀 bus😀 👩‍👧 👩🏽‍👧 bus\ufe0f ❤️",
    "bus\x00red\x07 bus\x1b[0m\u200bred\u00ad red\u2060bus \ufeffa \ue000a",
    "bus\tred\nred\r\nbus\u00a0red\u2003red\u3000red\u2028red\x0bbus\x85red",
    "ΣΑΣ Σ ς σσς ΌΣΟΣ",
    "İstanbul ıI i̇",
    "Ёлка й БУС бус ЙЙ",
    "a" + "\u0301" * 5 + " e\u0308\u0323",
    "bus " * 100,
    "x" * 100 + " " + "x" * 101 + " " + "x" * 5000,
    "б" * 60 + " " + "б" * 100 + " " + "б" * 101 + " " + "า" * 100,
    "[MASK] [CLS]bus[SEP] [mask] [UNK] [PAD]a [ MASK ]",
    "$1,200.50 + 2 ~ 3^4 `x` {a} <b> |c| a_b a-b a—b “bus” «bus» …¿?",
    "http://bus.house/red?dog=1&cafe=2#the @red #bus",
    "ﷺ ﷺ\ufffd\ufffda",
    "กา bus\u0e01\u0e32",
    "\U0002b830\U0002b920\U0002a700",
]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def expected_ids(processor, texts=TEXTS):
    return processor(
        text=texts,
        padding="max_length",
        max_length=64,
        truncation=True,
        return_tensors="np",
    )


def test_token_ids_equal(directory, processor):
    preprocessor = AlignPreprocessor.from_preset(str(directory))
    expected = expected_ids(processor)
    # The corpus must reach most of the vocabulary.
    assert len(np.unique(expected["input_ids"])) > 45
    in_graph = tf.function(preprocessor.tokenize)(tf.constant(TEXTS))
    for tokens in (preprocessor.tokenize(TEXTS), in_graph):
        for row, text in enumerate(TEXTS):
            np.testing.assert_array_equal(
                np.asarray(tokens["token_ids"])[row],
                expected["input_ids"][row],
                err_msg=repr(text),
            )
        np.testing.assert_array_equal(
            tokens["padding_mask"], expected["attention_mask"]
        )
    (one,) = expected_ids(processor, ["the red bus"])["input_ids"]
    single = tf.function(preprocessor.tokenize)(tf.constant("the red bus"))
    np.testing.assert_array_equal(single["token_ids"], one)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
)
def test_other_settings_and_plain_vocabularies(settings, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "align"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AlignTokenizer.from_preset(str(tmp_path))
    assert tokenizer.get_vocabulary() == VOCABULARY
    theirs = transformers.BertTokenizerFast(
        vocab={token: i for i, token in enumerate(VOCABULARY)}, **settings
    )
    expected = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    in_graph = tf.function(tokenizer.tokenize)(tf.constant(TEXTS)).to_list()
    for text, one, two, three in zip(
        TEXTS, tokenizer.tokenize(TEXTS), in_graph, expected, strict=True
    ):
        assert one == three, text
        assert two == three, text


def photos():
    rng = np.random.default_rng(0)
    sizes = ((500, 375), (375, 500), (640, 480), (120, 90))
    return [
        Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype="uint8")).resize(
            size, Image.Resampling.BICUBIC
        )
        for size in sizes
    ]


def grey_levels(converter, images):
    converted = np.asarray(converter.load(images), "float64")
    return (converted - converter.offset) / converter.scale


def test_pixels_equal(directory, processor):
    images = photos()
    expected = processor(images=images, return_tensors="np")["pixel_values"]
    expected = (expected.transpose(0, 2, 3, 1) + 1) * 127.5
    converter = AlignImageConverter.from_preset(str(directory))
    assert (converter.resize_size, converter.image_size) == (
        (346, 346),
        (289, 289),
    )
    difference = np.abs(grey_levels(converter, images) - expected)
    assert difference.mean() < 0.07 and difference.max() < 1.01
    # As the public checkpoints were trained: two neighbours on each axis.
    trained = AlignImageConverter.from_preset(str(directory), antialias=False)
    bilinear = tf.stack(
        [tf.image.resize(np.asarray(image), (346, 346)) for image in images]
    )[:, 28:317, 28:317]
    np.testing.assert_allclose(
        grey_levels(trained, images), bilinear, atol=0.02
    )


def test_other_pixel_settings(tmp_path):
    settings = {
        "size": {"height": 61, "width": 50},
        "crop_size": {"height": 48, "width": 45},
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
        "include_top": True,
    }
    processor = make_processor(**settings)
    processor.save_pretrained(tmp_path)
    make_align().config.save_pretrained(tmp_path)
    preprocessor = AlignPreprocessor.from_preset(str(tmp_path))
    images = photos()
    expected = processor(images=images, return_tensors="np")["pixel_values"]
    result = preprocessor.image_converter.load(images)
    # A grey level is 1 / 255 / 0.2 / 0.2 here.
    difference = np.abs(result - expected.transpose(0, 2, 3, 1))
    assert difference.mean() < 0.07 / 255 / 0.04
    assert difference.max() < 1.01 / 255 / 0.04


@pytest.mark.parametrize(
    ("scale", "offset", "settings"),
    [
        (1 / 127.5, -1.0, {}),
        (
            (0.01, 0.02, 0.03),
            (-0.5, 0.0, 0.25),
            {"special_tokens_in_strings": True},
        ),
    ],
)
def test_way_out(scale, offset, settings, tmp_path):
    ours = AlignPreprocessor(
        AlignTokenizer(VOCABULARY, **settings),
        AlignImageConverter(
            image_size=(33, 30), resize_size=40, scale=scale, offset=offset
        ),
    )
    write_processor(ours, tmp_path)
    make_align().config.save_pretrained(tmp_path)
    theirs = transformers.AlignProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        expected_ids(theirs)["input_ids"], ours.tokenize(TEXTS)["token_ids"]
    )
    images = photos()
    expected = theirs(images=images, return_tensors="np")["pixel_values"]
    averaging = AlignImageConverter.from_preset(str(tmp_path), antialias=True)
    difference = averaging.load(images) - expected.transpose(0, 2, 3, 1)
    difference = np.abs(difference) / np.asarray(scale)
    assert difference.mean() < 0.07 and difference.max() < 1.01
    again = open_foreign_weights(tmp_path).preprocessor()
    np.testing.assert_array_equal(
        again.tokenize(TEXTS)["token_ids"], ours.tokenize(TEXTS)["token_ids"]
    )
    assert again.image_converter.antialias is False
    np.testing.assert_allclose(
        again.image_converter.load(images),
        ours.image_converter.load(images),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("preprocessor_config.json", "resample", 3),
        ("preprocessor_config.json", "size", {"shortest_edge": 3}),
        ("preprocessor_config.json", "image_processor_type", "ViTImage"),
        ("tokenizer_config.json", "unk_token", "<unk>"),
        ("preprocessor_config.json", "crop_size", {"height": 9, "width": 347}),
        ("tokenizer.json", "model", {"type": "BPE"}),
        ("tokenizer.json", "model", {"type": "WordPiece"}),
        ("tokenizer.json", "model", None),
        ("tokenizer.json", "normalizer", {"type": "Lowercase"}),
        ("tokenizer.json", "normalizer", None),
        ("tokenizer.json", "pre_tokenizer", {"type": "Whitespace"}),
        ("tokenizer.json", "pre_tokenizer", None),
        (
            "tokenizer.json",
            "added_tokens",
            [{"id": len(VOCABULARY), "content": "<x>"}],
        ),
    ],
)
def test_what_our_preprocessing_lacks_is_refused(
    file, field, value, directory, tmp_path
):
    copy = shutil.copytree(directory, tmp_path / "copy")
    settings = json.loads((copy / "processor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(
        json.dumps(settings["image_processor"])
    )
    content = json.loads((copy / file).read_text())
    content[field] = value
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{file}") as error:
        AlignPreprocessor.from_preset(str(copy))
    assert "must" in str(error.value)
