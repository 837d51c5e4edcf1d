"""Averages of two models against NumPy, and pairs that do not belong."""

import json

import numpy as np
import pytest
from keras import ops
from tiny_align import VOCABULARY
from tiny_align import tiny_align

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras.cli import main
from align_keras.data import pack
from align_keras.evaluation import measure_retrieval
from align_keras.training.averaging import average


@pytest.fixture(scope="module")
def models():
    return tiny_align(seed=0), tiny_align(seed=1)


def arrays(model):
    return {w.path: ops.convert_to_numpy(w) for w in model.weights}


@pytest.mark.parametrize("frozen", ["nothing", "layers", "towers"])
def test_equals_numpy(models, frozen):
    """Whatever of the second was left as it was."""
    models = models[0], tiny_align(seed=1)
    image_encoder, text_encoder = (
        models[1].image_encoder,
        models[1].text_encoder,
    )
    parts = {
        "nothing": [],
        "layers": [image_encoder.blocks[0], text_encoder.token_embedding],
        "towers": [image_encoder, text_encoder],
    }
    for part in parts[frozen]:
        part.trainable = False
    one, other = map(arrays, models)
    mixed = arrays(average(*models, 0.4))
    assert mixed.keys() == one.keys()
    variances = 0
    for path, value in mixed.items():
        a, b = (v[path].astype("float64") for v in (one, other))
        if path.endswith("moving_variance"):
            variances += 1
            expected = (0.6 * np.sqrt(a) + 0.4 * np.sqrt(b)) ** 2
            assert np.abs(expected - 0.6 * a - 0.4 * b).max() > 1e-6
        else:
            expected = 0.6 * a + 0.4 * b
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
    assert variances > 10


def test_variances_are_those_of_summed_responses():
    """Of a layer whose two versions respond alike up to a scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 3))
    kernel = rng.normal(size=(3, 4))
    scale = rng.uniform(0.5, 2.0, 4)
    first, second = x @ kernel, x @ (kernel * scale)
    expected = (x @ (0.7 * kernel + 0.3 * kernel * scale)).var(axis=0)
    got = (0.7 * first.std(axis=0) + 0.3 * second.std(axis=0)) ** 2
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_the_ends_are_the_models_themselves(models, tmp_path):
    kept = [arrays(model) for model in models]
    average(*models, 0.0, tmp_path / "first")
    first = AlignDualEncoder.from_preset(str(tmp_path / "first"))
    for mixed, model in (
        (first, models[0]),
        (average(*models, 1), models[1]),
        (average(models[0], models[0], 0.37), models[0]),
    ):
        expected = arrays(model)
        for path, value in arrays(mixed).items():
            np.testing.assert_allclose(value, expected[path], rtol=2e-7)
    assert first.preprocessor.tokenizer.get_vocabulary() == VOCABULARY
    # What was given is left alone.
    for model, before in zip(models, kept, strict=True):
        for path, value in arrays(model).items():
            np.testing.assert_array_equal(value, before[path])


def copy(encoder):
    return type(encoder).from_config(encoder.get_config())


def variant(base, text=None, **preprocessor):
    tokenizer = preprocessor.pop("tokenizer", base.preprocessor.tokenizer)
    return AlignDualEncoder(
        copy(base.image_encoder),
        text or copy(base.text_encoder),
        preprocessor=AlignPreprocessor(
            tokenizer, AlignImageConverter(33, **preprocessor), 16
        ),
    )


def test_what_differs_is_named(models):
    base = models[0]
    size = len(VOCABULARY)
    cases = [
        (
            variant(base, BertTextEncoder(size, 2, 2, 32, 64)),
            "`text_encoder.num_layers`: 1 and 2",
        ),
        (
            variant(base, tokenizer=AlignTokenizer([*VOCABULARY, "zebra"])),
            f"`size of the vocabulary`: {size} and {size + 1}",
        ),
        (
            variant(
                base, tokenizer=AlignTokenizer([*VOCABULARY[:-1], "zebra"])
            ),
            f"`token {size - 1} of the vocabulary`: '{VOCABULARY[-1]}' and "
            "'zebra'",
        ),
        (
            variant(
                base, tokenizer=AlignTokenizer(VOCABULARY, lowercase=False)
            ),
            "`tokenizer.lowercase`: True and False",
        ),
        (variant(base, scale=0.5), "`image_converter.scale`"),
    ]
    for other, words in cases:
        with pytest.raises(ValueError) as caught:
            average(base, other, 0.5)
        assert words in str(caught.value)
    codes = tiny_align()
    codes.quantize("int8")
    for pair in ((base, codes), (codes, base), (codes, codes)):
        with pytest.raises(ValueError, match="quantised model cannot be aver"):
            average(*pair, 0.5)
    # How it was trained makes no difference, nor does the size of images.
    again = variant(base, BertTextEncoder(size, 1, 2, 32, 64, dropout=0.5))
    again.preprocessor.image_converter = AlignImageConverter(64)
    mixed = average(base, again, 0.5)
    assert mixed.preprocessor.image_converter.image_size == (64, 64)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            average(base, again, weight)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    from colors import write_images

    folder = tmp_path_factory.mktemp("sweep")
    for name, model in zip("ab", models, strict=True):
        model.save_to_preset(str(folder / name))
    write_images(folder / "photos")
    captions = folder / "photos" / "captions.csv"
    for name in ("old", "new"):
        pack(folder / "photos", folder / name, captions)
    return folder


def test_a_sweep_measures_both_tasks(folder, models, capsys):
    out = folder / "sweep"
    words = ["average", folder / "a", folder / "b", "--sweep", "--json"]
    words += ["--old-data", folder / "old", "--new-data", folder / "new"]
    assert main([*map(str, words), "--output", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((out / "sweep.json").read_text())
    assert [row["weight"] for row in rows] == [n / 10 for n in range(11)]
    for place, model in ((0, models[0]), (10, models[1])):
        for task in ("old", "new"):
            expected = measure_retrieval(
                model, str(folder / task), progress=False
            )
            got = rows[place][task]
            assert got["mean_recall"] == pytest.approx(expected["mean_recall"])
            low, high = got["intervals"]["mean_recall"]
            assert low <= got["mean_recall"] <= high
    assert (out / "sweep.png").read_bytes()[1:4] == b"PNG"


def test_the_command_writes_an_average(folder, models, capsys):
    out = folder / "mixed"
    words = ["average", folder / "a", folder / "b", "--output", out]
    assert main([*map(str, words), "--weight", "0.25"]) == 0
    assert f"The average is in {out}" in capsys.readouterr().out
    expected = arrays(average(*models, 0.25))
    for path, value in arrays(AlignDualEncoder.from_preset(str(out))).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-6)
    for extra, words in (
        ([], "either `--weight`"),
        (["--weight", "1", "--sweep"], "either `--weight`"),
        (["--sweep"], "needs both `--old-data` and `--new-data`"),
        (["--weight", "1", "--new-data", "."], "nothing else takes them"),
        (["--weight", "1", "--allow-outside"], "for the data of `--sweep`"),
        (["--weight", "1", "--batch-size", "64"], "`--batch-size` is for"),
    ):
        assert main([*map(str, words_of(folder)), *extra]) == 2
        assert words in capsys.readouterr().err


def words_of(folder):
    return ["average", folder / "a", folder / "b", "--output", folder / "no"]
