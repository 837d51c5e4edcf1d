"""The runners on small files, with a model that sees mean colors."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from seer import Seer
from seer import write_root

from align_keras.embedding import Embedder
from align_keras.embedding import streams as embed
from align_keras.evaluation import datasets
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.cxc_runner import measure_cxc
from align_keras.evaluation.labelled_runner import measure_knn
from align_keras.evaluation.labelled_runner import measure_linear_probe
from align_keras.evaluation.labelled_runner import measure_zero_shot
from align_keras.evaluation.report import describe
from align_keras.evaluation.runner import measure_retrieval
from align_keras.evaluation.runner import measure_words


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def quiet(**options):
    return {"progress": False, "samples": 50, "batch_size": 3, **options}


def test_karpathy_takes_five_captions_and_finds_pictures(root, tmp_path):
    coco = root / "mscoco"
    file = coco / "dataset_coco.json"
    data = datasets.karpathy(file, coco / "images", name="mscoco")
    examples = list(data.examples())
    assert len(examples) == data.total == 4
    assert all(len(texts) == 5 for _, _, texts in examples)
    both = datasets.karpathy(file, coco / "images", "test,restval")
    assert both.total == 5
    flat = coco / "images" / "val2014"
    assert list(datasets.karpathy(file, flat).examples())[0][1].is_file()
    with pytest.raises(ValueError, match="no picture of the split 'dev'"):
        datasets.karpathy(file, coco / "images", "dev")
    with pytest.raises(FileNotFoundError, match="no picture `val2014/COCO"):
        list(datasets.karpathy(file, tmp_path).examples())

    result = measure_retrieval(Seer().embedder(), data, **quiet())
    assert (result["images"], result["texts"]) == (4, 20)
    assert result["dataset"] == "mscoco" and result["model"] == "seer"
    low, high = result["intervals"]["image_to_text_recall@5"]
    assert low <= result["image_to_text_recall@5"] <= high
    said = describe(result)
    assert "ALIGN, zero-shot" in said and "58.6%" in said
    two = measure_retrieval(Seer().embedder(), data, folds=2, **quiet())
    assert two["dataset"] == "mscoco_2_folds"
    assert two["chance_text_to_image_recall@1"] == 0.5


def test_multi30k(root, tmp_path):
    names = ["COCO_val2014_000000000000.jpg", "COCO_val2014_000000000001.jpg"]
    (tmp_path / "test_images.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "test.fr").write_text("rouge\nvert\n")
    for number in range(1, 6):
        (tmp_path / f"test.{number}.de").write_text("rot\ngrün\n")
    images = root / "mscoco" / "images" / "val2014"
    french = datasets.multi30k(tmp_path, "fr", images)
    assert [texts for _, _, texts in french.examples()] == [["rouge"], ["vert"]]
    german = list(datasets.multi30k(tmp_path, "de", images).examples())
    assert german[1][2] == ["grün"] * 5
    (tmp_path / "test.fr").write_text("rouge\n")
    with pytest.raises(ValueError, match="test.fr` has 1 lines.* 2 pictures"):
        datasets.multi30k(tmp_path, "fr", images)


def test_zero_shot_restricts_the_classes(root):
    data = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    names = root / "imagenet" / "classes.json"
    result = measure_zero_shot(Seer().embedder(), data, names, **quiet())
    assert (result["classes"], result["images"]) == (3, 12)
    assert result["top1"] == result["mean_per_class"] == 1.0
    everything = measure_zero_shot(
        Seer().embedder(), data, names, all_classes=True, **quiet()
    )
    assert everything["classes"] == 4
    assert everything["classes_without_pictures"] == 1
    assert "76.4%" in describe(result)

    own = measure_zero_shot(
        Seer().embedder(), data, None, ["{}", "my {}"], **quiet()
    )
    # Without names, folders are called n0, n1, n2: the seer knows nothing.
    assert own["templates"] == 2 and own["top1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no entry for the label 'n0'"):
        classes = datasets.Classes(["a"], [["b"]])
        measure_zero_shot(Seer().embedder(), data, classes, **quiet())


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"classes": ["a"], "templates": ["none"]}', "hold `{}` once"),
        ('{"classes": ["a", 3]}', "Received for '1': 3"),
        ('"a"', "Received: str"),
        ("[", "is not JSON"),
    ],
)
def test_bad_class_names_are_named(content, message, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        datasets.read_classes(path)


def test_knn_and_linear_probe(root, tmp_path):
    train = datasets.class_folders(root / "imagenet" / "train", "train")
    test = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    result = measure_knn(Seer().embedder(), train, test, ks=(1, 9), **quiet())
    assert result["accuracy@1"] == 1.0 and result["train_images"] == 18
    # The paper measured neighbours in its ablations alone.
    assert "B7 + BERT-base, full data" in describe(result)
    assert "69.3%" in describe(result) and "64.6%" in describe(result)
    assert result["chance_accuracy@1"] == pytest.approx(1 / 3)
    assert result["chance_accuracy@9"] == pytest.approx(1 - (2 / 3) ** 9)
    for solver in ("lbfgs", "sgd"):
        result = measure_linear_probe(
            Seer().embedder(), train, test, solver=solver, **quiet()
        )
        assert result["top1"] == 1.0
        # Of three classes, five are no question.
        assert set(result.figures) == {"top1", "mean_per_class"}
        assert describe(result).startswith("linear-probe, imagenet: 12 pict")
        assert (result["decay"] is None) == (solver == "sgd")
    shutil.copytree(root / "imagenet" / "val" / "n0", tmp_path / "other" / "n9")
    fewer = tmp_path / "fewer"
    shutil.copytree(root / "imagenet" / "train", fewer)
    (fewer / "n0" / "0.png").unlink()
    fewer = datasets.class_folders(fewer, "train")
    other = measure_knn(Seer().embedder(), fewer, test, **quiet())
    result = measure_knn(Seer().embedder(), train, test, **quiet())
    with pytest.raises(ValueError, match="Received train_pictures="):
        compare_results(result, other)
    other = datasets.class_folders(tmp_path / "other")
    with pytest.raises(ValueError, match="Only one of them has: n0"):
        measure_knn(Seer().embedder(), train, other, **quiet())


def test_unreadable_pictures_and_nan(root, tmp_path, caplog):
    shutil.copytree(root / "imagenet" / "val", tmp_path / "val")
    (tmp_path / "val" / "n1" / "0.png").write_bytes(b"no picture")
    data = datasets.class_folders(tmp_path / "val")
    names = root / "imagenet" / "classes.json"
    result = measure_zero_shot(Seer().embedder(), data, names, **quiet())
    assert result["pictures_skipped"] == 1 and result["images"] == 11
    assert "n1/0.png" in caplog.text and "left out" in caplog.text

    def broken(batch):
        return np.full((len(batch), 3), np.nan)

    nan = Embedder("nan", broken, Seer().texts)
    with pytest.raises(ValueError, match="image_embeddings.*11 of 11 rows"):
        measure_zero_shot(nan, data, names, **quiet())


def test_vectors_on_disk_are_used_and_checked(root, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 5)
    data = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    pictures = [(key, picture) for key, picture, _ in data.examples()]

    def embed_all(seer, named=pictures):
        return embed.embed_readable(
            seer.embedder("f1"), named, 3, False, cache=tmp_path, name="val"
        )[0]

    class Interrupted(Seer):
        def images(self, batch):
            if self.pictures >= 6:
                raise KeyboardInterrupt
            return super().images(batch)

    with pytest.raises(KeyboardInterrupt):
        embed_all(Interrupted())
    second = Seer()
    rows = embed_all(second)
    # The first five were on disk; batches of three are filled up.
    assert second.pictures == 6 + 3
    third = Seer()
    np.testing.assert_array_equal(embed_all(third), rows)
    assert third.pictures == 0
    fresh = embed.embed_images(Seer().embedder(), [p for _, p in pictures])
    np.testing.assert_allclose(rows, fresh, atol=1e-6)
    with pytest.raises(ValueError, match="vectors of other pictures"):
        embed_all(Seer(), pictures[::-1])


def rated_pairs(path, columns):
    with open(path, newline="") as file:
        return [
            (*(row[name] for name in columns), float(row["agg_score"]))
            for row in csv.DictReader(file)
        ]


def direct_recalls(root, k, sis=2.5, originals=True, drop_empty=True):
    """Recall@K of all four tasks, pair by pair, from the files alone."""
    ratings, images = root / "cxc", root / "mscoco" / "images" / "val2014"
    coco = json.loads((root / "mscoco" / "dataset_coco.json").read_text())
    vectors, owner = {}, {}
    for image in coco["images"]:
        name = image["filename"]
        pixels = np.asarray(Image.open(images / name))
        vectors[name] = Seer().images([pixels])[0]
        for sentence in image["sentences"][:5]:
            caption = f"COCO_val2014:sentid:{sentence['sentid']}"
            vectors[caption] = Seer().texts([sentence["raw"]])[0]
            owner[caption] = name
    vectors = {n: v / np.linalg.norm(v) for n, v in vectors.items()}
    matches = {
        (caption, image)
        for caption, image, score in rated_pairs(
            ratings / "sits_test.csv", ("caption", "image")
        )
        if score >= 3 or (originals and owner[caption] == image)
    }
    for a, b, score in rated_pairs(
        ratings / "sts_test.csv", ("caption1", "caption2")
    ):
        if score >= 3:
            matches.add((a, b))
    matches |= {
        (a, b) for a in owner for b in owner if owner[a] == owner[b] and a != b
    }
    for a, b, score in rated_pairs(
        ratings / "sis_test.csv", ("image1", "image2")
    ):
        if score >= sis:
            matches.add((a, b))
    matches |= {(b, a) for a, b in matches}
    captions = sorted(owner, key=lambda name: (len(name), name))
    sides = {"image": sorted(set(owner.values())), "text": captions}
    found = {}
    for query_kind, candidate_kind in itertools.product(sides, sides):
        hits = []
        for query in sides[query_kind]:
            others = [c for c in sides[candidate_kind] if c != query]
            # Sorting is stable: equals stay in their order.
            others.sort(
                key=lambda c: np.float32(-(vectors[query] @ vectors[c]))
            )
            if any((query, c) in matches for c in others):
                hits.append(any((query, c) in matches for c in others[:k]))
            elif not drop_empty:
                hits.append(False)
        found[f"{query_kind}_to_{candidate_kind}_recall@{k}"] = np.mean(hits)
    return found


@pytest.mark.parametrize(
    "sis, originals, drop_empty",
    [(2.5, True, True), (4.8, False, False), (4.8, True, True)],
)
def test_cxc_matches_a_direct_computation(root, sis, originals, drop_empty):
    coco = root / "mscoco"
    result = measure_cxc(
        Seer().embedder(),
        root / "cxc",
        coco / "dataset_coco.json",
        coco / "images",
        ks=(1, 2),
        drop_empty=drop_empty,
        positives={"thresholds": {"sis": sis}, "originals": originals},
        correlation={"share": 1.0, "samples": 30},
        **quiet(),
    )
    for k in (1, 2):
        expected = direct_recalls(root, k, sis, originals, drop_empty)
        found = {name: result[name] for name in expected}
        assert found == pytest.approx(expected)
    assert len(result.outcomes["sample_sts_correlation"]) == 30
    for name in ("sts", "sis", "sits", "mean"):
        drawn = result.outcomes[f"sample_{name}_correlation"]
        assert result[f"{name}_correlation"] == pytest.approx(drawn.mean())
        assert result["deviations"][f"{name}_correlation"] == pytest.approx(
            drawn.std()
        )
    parts = [result[f"{t}_correlation"] for t in ("sts", "sis", "sits")]
    assert result["mean_correlation"] == pytest.approx(np.mean(parts))
    said = describe(result)
    assert "78.1%" in said and "± std" in said
    deviation = result["deviations"]["sits_correlation"]
    (line,) = [line for line in said.splitlines() if "sits corr" in line]
    assert f"{result['sits_correlation']:8.1%}{deviation:8.1%}" in line


def test_cxc_results_name_their_definition(root, tmp_path):
    coco = root / "mscoco"
    for path in (root / "cxc").glob("*_test.csv"):
        shutil.copy(path, tmp_path / path.name.replace("test", "val"))

    def measure(ratings=root / "cxc", **options):
        return measure_cxc(
            Seer().embedder(),
            ratings,
            coco / "dataset_coco.json",
            coco / "images",
            **quiet(**options),
        )

    result = measure()
    # Defaults that are given are the same definition.
    given = measure(
        positives={"thresholds": {"sis": 2.5}, "repeated": "keep"},
        correlation={"query_columns": {}, "replace": False},
    )
    compare_results(result, given)
    validation = measure(tmp_path, split="val")
    assert validation["dataset"] == "cxc_val"
    assert "78.1%" not in describe(validation)
    others = {
        "dataset": validation,
        "positives_options": measure(positives={"thresholds": {"sis": 3.0}}),
        "correlation_options": measure(correlation={"replace": True}),
    }
    for field, other in others.items():
        with pytest.raises(ValueError, match=f"Received {field}="):
            compare_results(result, other)
    # So many samples are drawn as the intervals have.
    with pytest.raises(ValueError, match="'samples': 50.*'samples': 20"):
        compare_results(result, measure(samples=20))


def test_words(root):
    path = root / "simlex999" / "SimLex-999.txt"
    result = measure_words(Seer().embedder(), path, False, 50)
    assert result["pairs"]["nouns"] == 2 and result["pairs"]["hard"] == 2
    assert result["hard"] == pytest.approx(1.0)
    assert np.isnan(result["adjectives"])  # One pair has no order.
    assert result["dataset"] == "simlex999"


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "not in Karpathy's form"),
        ('{"a": 1}', "not in Karpathy's form"),
        ('{"images": ["a"]}', "not in Karpathy's form"),
        ("{", "is not JSON"),
    ],
)
def test_malformed_captions_are_named(content, message, root, tmp_path):
    file = tmp_path / "dataset_coco.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"dataset_coco.json` .*{message}"):
        datasets.read_sentences(file, ["a:1"])
    with pytest.raises(ValueError, match="dataset_coco.json`"):
        datasets.karpathy(file, tmp_path)
