"""Crisscrossed Captions on small files, pair by pair."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from seer import Seer
from seer import write_root

from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.cxc import measure_cxc
from align_keras.evaluation.describe_results import describe_result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def quiet(**options):
    return {"progress": False, "samples": 50, "batch_size": 3, **options}


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
    said = describe_result(result)
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
    assert "78.1%" not in describe_result(validation)
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
