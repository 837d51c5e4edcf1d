"""A diagnosis: its numbers against plain loops, its page and its command."""

import dataclasses
import html
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seer import COLORS
from seer import Seer
from seer import paint

from align_keras.cli import main
from align_keras.embedding import similarity as vectors
from align_keras.evaluation import DataSet
from align_keras.evaluation import diagnose
from align_keras.evaluation import diagnosis
from align_keras.evaluation import geometry
from align_keras.evaluation import geometry_metrics
from align_keras.evaluation import pair_cosines
from align_keras.evaluation.diagnosis_page import describe_diagnosis
from align_keras.evaluation.diagnosis_page import measures
from align_keras.evaluation.results import plain


def unit(rows):
    rows = np.asarray(rows, "float64")
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        "float32"
    )


def make_case(kind):
    """Vectors with several texts of an image and of several images."""
    rng = np.random.default_rng(3)
    images, texts = rng.normal(size=(17, 6)), rng.normal(size=(40, 6))
    texts[:, 0] += 0.7
    if kind == "duplicates":
        images = images[rng.integers(0, 4, 17)]
        texts = texts[rng.integers(0, 5, 40)]
    elif kind == "ties":
        images, texts = np.sign(images), np.sign(texts)
    owners = rng.integers(0, 15, 40)  # Images 15 and 16 have none.
    pairs = np.stack([np.arange(40), owners], axis=1)
    more = [[3, 2], [3, 9], [7, 11], [0, owners[0]]]  # The last one is twice.
    return unit(images), unit(texts), np.concatenate([pairs, more])


def score(x, y):
    """A cosine as defined: summed exactly, rounded to float32 once."""
    products = x.astype("float64") * y.astype("float64")
    return np.float32(math.fsum(products))


def squared(x, y):
    return float(((x.astype("float64") - y.astype("float64")) ** 2).sum())


def brute_force(images, texts, pairs, k):
    """The numbers that need no sample, by their definitions."""
    pairs = sorted({(image, text) for text, image in pairs.tolist()})
    found = {"pairs": len(pairs)}
    found["alignment"] = np.mean(
        [squared(images[i], texts[t]) for i, t in pairs]
    )
    for name, rows in (("image", images), ("text", texts)):
        apart = [squared(x, y) for x, y in itertools.combinations(rows, 2)]
        found[f"{name}_uniformity"] = math.log(
            np.mean(np.exp(-2 * np.array(apart)))
        )
    means = images.astype("float64").mean(0), texts.astype("float64").mean(0)
    gap = means[0] - means[1]
    found["modality_gap"] = math.sqrt((gap**2).sum())
    place = [
        [(x.astype("float64") - sum(means) / 2) @ gap for x in rows]
        for rows in (images, texts)
    ]
    sides = np.mean(np.array(place[0]) > 0), np.mean(np.array(place[1]) < 0)
    found["modality_separation"] = np.mean(sides)
    scores = np.array([[score(x, y) for y in texts] for x in images])
    own = [scores[pair] for pair in pairs]
    every = itertools.product(range(len(images)), range(len(texts)))
    others = [scores[pair] for pair in every if pair not in set(pairs)]
    wins = [(p > n) + (p == n) / 2 for p in own for n in others]
    found["auc"] = np.mean(wins)
    found["counts"] = [
        np.histogram(np.clip(values, -1, 1), pair_cosines.COSINE_EDGES)[
            0
        ].tolist()
        for values in (own, others)
    ]
    found["means"] = np.mean(own, dtype=float), np.mean(others, dtype=float)
    for way, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        occurs = Counter()
        for row in matrix:
            order = sorted(range(len(row)), key=lambda n: (-row[n], n))
            occurs.update(order[:k])
        counts = np.array([occurs[n] for n in range(matrix.shape[1])], float)
        apart = counts - counts.mean()
        order = sorted(range(len(counts)), key=lambda n: (-counts[n], n))
        found[way] = {
            "skewness": (apart**3).mean() / (apart**2).mean() ** 1.5,
            "never_retrieved": np.mean(counts == 0),
            "hubs": [(n, counts[n]) for n in order[:10] if counts[n]],
        }
    rows = []
    for image in sorted({i for i, _ in pairs}):
        mine = [t for i, t in pairs if i == image]
        order = sorted(range(len(texts)), key=lambda n: (-scores[image, n], n))
        best = next(t for t in order if t in mine)
        wrong = next((t for t in order if t not in mine), None)
        if wrong is not None:
            ahead = float(scores[image, wrong]) - float(scores[image, best])
            rows.append((-ahead, image, best, wrong))
    found["wrong"] = [row[1:] for row in sorted(rows)]
    return found


def flat(found):
    """What `geometry_metrics` gives, in the form of `brute_force`."""
    cosines = found["cosines"]
    names = ("pairs", "alignment", "image_uniformity", "text_uniformity")
    names += ("modality_gap", "modality_separation")
    return {
        **{name: found[name] for name in names},
        "auc": cosines["auc"],
        "counts": [cosines["pairs"], cosines["non_pairs"]],
        "means": (cosines["pair_mean"], cosines["non_pair_mean"]),
        **{
            way: {
                "skewness": hubs["skewness"],
                "never_retrieved": hubs["never_retrieved"],
                "hubs": [
                    (row["index"], row["occurrences"]) for row in hubs["hubs"]
                ],
            }
            for way, hubs in found["hubness"].items()
        },
        "wrong": [
            (row["image"], row["text"], row["wrong_text"])
            for row in found["wrong_texts"]
        ],
    }


def assert_same(one, other):
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert_same(one[name], value)
    elif isinstance(other, (list, str, int)):
        assert one == other
    else:
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


# === Numbers ===


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("kind", ["random", "ties", "duplicates"])
def test_every_number_is_that_of_its_definition(kind, k):
    images, texts, pairs = make_case(kind)
    found = geometry_metrics(images, texts, pairs, k=k, examples=99)
    assert_same(flat(found), brute_force(images, texts, pairs, k))
    # A smaller sheet is the beginning of a larger one.
    few = geometry_metrics(images, texts, pairs, k=k, examples=4)
    assert few["wrong_texts"] == found["wrong_texts"][:4]


@pytest.mark.parametrize("block", [1, 50, 4000])
def test_the_size_of_blocks_changes_nothing(block, monkeypatch):
    images, texts, pairs = make_case("duplicates")
    expected = geometry_metrics(images, texts, pairs, 0.1, 8)
    monkeypatch.setattr(vectors, "BLOCK", block)
    found = geometry_metrics(images, texts, pairs, 0.1, 8)
    for name in ("hubness", "wrong_texts", "cosines", "uniformity_rows"):
        assert found.pop(name) == expected.pop(name)
    softmax = found.pop("softmax"), expected.pop("softmax")
    for way in pair_cosines.WAYS:
        probability = [part.pop(way)["mean_probability"] for part in softmax]
        assert probability[0] == pytest.approx(probability[1], rel=1e-12)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 1e-4])
def test_the_softmax_is_that_of_a_batch(temperature, monkeypatch):
    images, texts, pairs = make_case("random")
    pairs = pairs[np.unique(pairs[:, 1], return_index=True)[1]]
    found = geometry_metrics(images, texts, pairs, temperature, 99)["softmax"]
    # Fewer images than a batch: all that have a text, in one batch.
    assert (found["batch"], found["batches"]) == (len(pairs), 1)
    x = images[pairs[:, 1]].astype("float64")
    y = texts[pairs[:, 0]].astype("float64")
    scores = x @ y.T / temperature
    for way, axis in (("image_to_text", 1), ("text_to_image", 0)):
        shares = np.exp(scores - scores.max(axis, keepdims=True))
        own = np.diag(shares / shares.sum(axis, keepdims=True))
        part = found[way]
        assert part["mean_probability"] == pytest.approx(own.mean(), rel=1e-9)
        bins = np.histogram(own, pair_cosines.PROBABILITY_EDGES)[0]
        assert part["histogram"] == bins.tolist()


def test_batches_hold_each_image_once():
    images, texts, pairs = make_case("random")
    found = geometry_metrics(images, texts, pairs, 0.1, 4)["softmax"]
    count = len(set(pairs[:, 1].tolist()))
    assert (found["batch"], found["batches"]) == (4, count // 4)
    assert sum(found["image_to_text"]["histogram"]) == count // 4 * 4
    # In a batch of copies, each has its share.
    same = geometry_metrics(images[:1].repeat(8, 0), texts[:1], [[0, 0]])
    assert same["softmax"] is None
    owners = np.arange(8)
    copies = images[:1].repeat(8, 0), texts[:1].repeat(8, 0), owners
    found = geometry_metrics(*copies, 0.01, 4)["softmax"]
    for way in pair_cosines.WAYS:
        assert found[way]["mean_probability"] == pytest.approx(1 / 4)


def test_samples_are_drawn_by_a_seed_and_told(monkeypatch):
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(300, 8)) + 0.3)
    texts = unit(images.repeat(2, 0) + 0.4 * rng.normal(size=(600, 8)))
    case = images, texts, np.arange(600) // 2
    whole = geometry_metrics(*case)
    assert whole["uniformity_rows"] == {"image": 300, "text": 600}
    assert whole["cosines"]["non_pairs_compared"] == 300 * 600 - 600
    monkeypatch.setattr(geometry, "ROWS", 200)
    monkeypatch.setattr(pair_cosines, "NON_PAIRS", 5000)
    found = [geometry_metrics(*case, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0]["uniformity_rows"] == {"image": 200, "text": 200}
    assert found[0]["cosines"]["non_pairs_compared"] == 5000
    assert found[0]["cosines"]["pairs"] == whole["cosines"]["pairs"]
    for name in ("image_uniformity", "text_uniformity"):
        values = [part[name] for part in found]
        assert values[0] != values[2]
        assert values == pytest.approx([whole[name]] * 3, abs=0.2)
    values = [part["cosines"]["auc"] for part in found]
    assert values[0] != values[2]
    assert values == pytest.approx([whole["cosines"]["auc"]] * 3, abs=0.02)


def test_what_is_known_without_computing():
    # Images on one axis, texts on another: apart, and each all the same.
    images, texts = np.eye(4)[[0, 0, 0]], np.eye(4)[[1, 1, 1]]
    found = geometry_metrics(images, texts, [0, 1, 2])
    assert found["alignment"] == pytest.approx(2)
    assert found["image_uniformity"] == found["text_uniformity"] == 0
    assert found["modality_gap"] == pytest.approx(math.sqrt(2))
    assert (found["modality_separation"], found["cosines"]["auc"]) == (1, 0.5)
    # All occur equally often.
    assert math.isnan(found["hubness"]["image_to_text"]["skewness"])
    # A plane through nothing tells nothing.
    found = geometry_metrics(images, images, [0, 1, 2])
    assert (found["modality_gap"], found["modality_separation"]) == (0, 0.5)
    # Perfect pairs of orthogonal vectors.
    found = geometry_metrics(np.eye(4), np.eye(4), [0, 1, 2, 3], k=1)
    assert (found["alignment"], found["cosines"]["auc"]) == (0, 1)
    assert found["image_uniformity"] == pytest.approx(-4)
    # One image has every text: none is wrong, and there are no non-pairs.
    found = geometry_metrics(np.eye(4)[:1], np.eye(4), [0, 0, 0, 0], 0.1)
    assert found["wrong_texts"] == []
    assert math.isnan(found["cosines"]["auc"])
    assert math.isnan(found["image_uniformity"])
    assert found["softmax"]["image_to_text"]["mean_probability"] == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "`temperature` must be positive.*temperature=0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"softmax_batch": 1}, "`softmax_batch` must be .* 2.*softmax_batch=1"),
        ({"examples": -1}, "`examples` must be .* 0.*examples=-1"),
        ({"k": 0}, "must be one or more positive"),
    ],
)
def test_options_out_of_range_are_refused(options, message, tmp_path):
    for call in (
        lambda: geometry_metrics(np.eye(2), np.eye(2), [0, 1], **options),
        # Before anything is embedded.
        lambda: diagnose(None, "nowhere", tmp_path / "out", **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# === Page and command ===

HOSTILE = "<script>alert('red')</script> \"><img src=x onerror=alert(1)> red"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    rows = ["image,caption"]
    names = list(COLORS)
    for number in range(8):
        color = names[number % 3]
        paint(folder / f"{number}.png", COLORS[color], number)
        # The last two images are called what they do not show.
        told = color if number < 6 else names[(number + 1) % 3]
        rows += [
            f"{number}.png,a {told} one",
            f"{number}.png,{told} no {number}",
        ]
    quoted = HOSTILE.replace('"', '""')
    rows += [f'0.png,"{quoted}"', "broken.png,a red one"]
    (folder / "broken.png").write_bytes(b"nothing")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def seer(monkeypatch, any_model):
    embedder = dataclasses.replace(Seer().embedder(), temperature=0.05)
    monkeypatch.setattr(diagnosis, "load_embedder", lambda _: embedder)
    return embedder


def run(photos, output, *options):
    words = ["diagnose", "--model", "m", "--data", str(photos), *options]
    return main([*words, "--output", str(output)])


def test_the_command_writes_numbers_and_a_page(photos, tmp_path, seer, capsys):
    output = tmp_path / "out"
    assert (
        run(
            photos,
            output,
            "--softmax-batch",
            "4",
            "--examples",
            "3",
            "--k",
            "3",
        )
        == 0
    )
    said = capsys.readouterr()
    assert "Left out" in said.err or "broken.png" in said.err
    assert said.err.count("broken.png") == 1  # Though images are read again.
    assert {p.name for p in output.iterdir()} == {
        "diagnosis.json",
        "index.html",
    }
    found = json.loads((output / "diagnosis.json").read_text())
    assert (found["images"], found["images_skipped"]) == (8, 1)
    # Three colors, eight numbers and the hostile one are different.
    assert (found["captions"], found["texts"], found["pairs"]) == (17, 12, 17)
    assert (found["softmax"]["batch"], found["softmax"]["batches"]) == (4, 2)
    assert found["softmax"]["temperature"] == 0.05
    wrong = found["wrong_texts"]
    assert {row["image"] for row in wrong[:2]} == {"6.png", "7.png"}
    assert len(wrong) == 3 and wrong[0]["wrong_cosine"] > wrong[0]["cosine"]
    assert wrong[0]["caption"] != wrong[0]["wrong_caption"]
    texts = {
        row["caption"] for row in found["hubness"]["image_to_text"]["hubs"]
    }
    assert "a red one" in texts
    page = (output / "index.html").read_text()
    for name, value, _ in measures(found):
        assert f"<td>{name}<td>{value}<" in page
        assert re.search(rf"^{name} +{value}$", said.out, re.MULTILINE)
    for number in (
        found["alignment"],
        found["modality_gap"],
        found["cosines"]["auc"],
        found["hubness"]["text_to_image"]["skewness"],
        found["softmax"]["text_to_image"]["mean_probability"],
    ):
        assert f"{number:.4f}" in page
    # The shares of each bin, in the words of its bar.
    for name in ("pairs", "non_pairs"):
        counts = found["cosines"][name]
        for count in filter(None, counts):
            words = name.replace("_", "-")
            assert f"{count:,} of {sum(counts):,} {words}</title>" in page
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img ")
    assert page.count("<figure>") == 3
    assert str(output / "index.html") in said.out


def test_numbers_are_those_of_the_vectors(photos, tmp_path, seer):
    found = diagnose("m", str(photos), tmp_path / "out", progress=False)
    pixels = [
        np.asarray(Image.open(photos / f"{number}.png")) for number in range(8)
    ]
    images = unit(seer.images(pixels))
    rows = [line.split(",", 1) for line in captions_of(photos)]
    # An image with all of its captions, one after the other.
    rows = sorted(rows, key=lambda row: row[0])
    texts = list(dict.fromkeys(text for _, text in rows))
    pairs = np.array([(texts.index(t), int(n[0])) for n, t in rows])
    expected = geometry_metrics(images, unit(seer.texts(texts)), pairs, 0.05)
    for name in ("alignment", "cosines", "softmax", "text_uniformity"):
        assert found[name] == plain(expected[name])
    for row, other in zip(
        found["wrong_texts"], expected["wrong_texts"], strict=True
    ):
        assert row["image"] == f"{other['image']}.png"
        assert row["wrong_caption"] == texts[other["wrong_text"]]
        assert row["cosine"] == other["cosine"]


def captions_of(photos):
    """Lines of the file without those of quotes and of no image."""
    lines = (photos / "captions.csv").read_text().splitlines()
    return [*lines[1:-2], f"0.png,{HOSTILE}"]


def test_hostile_captions_and_names_are_shown_as_they_are(tmp_path, seer):
    name = '"><script>alert(2)</script>\udce9'
    pixels = np.full((4, 4, 3), 200, "uint8")
    rows = [
        (name, pixels, [HOSTILE]),
        ("b", pixels, ["blue \udce9\u202e\x00"]),
        ("c", np.zeros((4, 4, 3), "float32"), []),
    ]
    data = DataSet("<b>set</b>", lambda: iter(rows))
    found = diagnose(seer, data, tmp_path / "out", progress=False)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page and "<b>set" not in page
    assert "<img src=x" not in page and "\u202e" not in page
    assert html.escape(HOSTILE) in page
    assert found["images_without_text"] == 1
    assert "1 without a caption" in page and "1 without" in describe_diagnosis(
        found
    )
    kept = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    shown = {row["caption"] for row in kept["wrong_texts"]}
    assert HOSTILE in shown


def test_json_says_what_is_written(photos, tmp_path, seer, capsys):
    assert run(photos, tmp_path / "out", "--json", "--seed", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out/diagnosis.json").read_text())
    assert found["seed"] == 3
    assert found["hubness"]["image_to_text"]["k"] == 10


def test_a_batch_is_that_of_the_run(photos, tmp_path, seer):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)

    def batch(model, **options):
        found = diagnose(
            model, str(photos), tmp_path / "out", progress=False, **options
        )
        return found["softmax"]["batch"]

    assert batch(str(model)) == 8
    (model.parent / "recipe.json").write_text('{"batch_size": 2}')
    assert batch(f"{model}/") == batch(model) == 2
    assert batch(model, softmax_batch=4) == 4
    assert batch(seer) == 8


def test_a_temperature_that_is_not_known_is_said(
    photos, tmp_path, seer, capsys
):
    blind = dataclasses.replace(seer, temperature=None)
    found = diagnose(blind, str(photos), tmp_path / "out", progress=False)
    assert found["softmax"] is None
    assert "not known" in (tmp_path / "out" / "index.html").read_text()
    assert "temperature" not in describe_diagnosis(found)
    given = diagnose(
        blind, str(photos), tmp_path / "out", temperature=0.2, progress=False
    )
    assert given["softmax"]["temperature"] == 0.2


def test_what_only_the_model_can_read_is_named(tmp_path, seer, caplog):
    rows = [("a", b"red", ["red"]), ("b", b"blue", ["blue"])]

    def read(contents):
        return np.full((4, 4, 3), COLORS[contents.decode()], "uint8")

    embedder = dataclasses.replace(seer, read=read)
    data = DataSet("words", lambda: iter(rows))
    found = diagnose(embedder, data, tmp_path / "out", progress=False)
    assert {row["image"] for row in found["wrong_texts"]} == {"a", "b"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<figure><small>a</small>" in page and "<img" not in page
    assert {"Image a is not shown", "Image b is not shown"} == {
        message.split(":")[0] for message in caplog.messages
    }


def test_data_without_captions_are_refused(tmp_path, seer, capsys):
    data = DataSet(
        "bare", lambda: iter([("a", np.zeros((4, 4, 3), "uint8"), [])])
    )
    with pytest.raises(ValueError, match="None of the 1 images of `bare`"):
        diagnose(seer, data, tmp_path / "out", progress=False)
    assert not Path(tmp_path, "out").exists()
    assert run(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err


def test_images_may_be_functions(tmp_path, seer):
    rows = [
        (name, lambda p=pixels: np.full((4, 4, 3), p, "uint8"), [name])
        for name, pixels in COLORS.items()
    ]
    data = DataSet("lazy", lambda: iter(rows))
    diagnose(seer, data, tmp_path / "out", progress=False)
    assert "<img" in (tmp_path / "out" / "index.html").read_text()
