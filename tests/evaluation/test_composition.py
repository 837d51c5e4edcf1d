"""Against the definitions, written once more example by example."""

import collections
import json
import math

import numpy as np
import pytest
from PIL import Image
from seer import COLORS
from seer import Seer
from seer import paint

from align_keras.cli import main
from align_keras.evaluation import compare_results
from align_keras.evaluation import measure_composition
from align_keras.evaluation import sugar_crepe
from align_keras.evaluation import visual_genome
from align_keras.evaluation import winoground
from align_keras.evaluation.composition import ARO
from align_keras.evaluation.composition import SUGAR_CREPE
from align_keras.evaluation.composition import composition_scores
from align_keras.evaluation.suite import list_jobs

NAMES = list(COLORS)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_definition(images, seed):
    """Many ties, an empty category, and weights as a bootstrap draws them."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (40, images, 2)).astype("float32")
    category = rng.choice([0, 1, 3], 40)
    weights = rng.integers(0, 3, 40)
    hits = collections.defaultdict(list)
    for example, own, times in zip(scores, category, weights, strict=True):
        if images == 1:
            found = {"accuracy": example[0][0] > example[0][1]}
        else:
            (i0c0, i0c1), (i1c0, i1c1) = example
            text = i0c0 > i0c1 and i1c1 > i1c0
            image = i0c0 > i1c0 and i1c1 > i0c1
            found = {
                "text_score": text,
                "image_score": image,
                "group_score": text and image,
            }
        for name, right in found.items():
            hits[name] += [right] * times
            hits[f"{'abcd'[own]}_{name}"] += [right] * times
    expected = {name: np.mean(values) for name, values in hits.items()}
    if images == 1:
        parts = [expected[f"{name}_accuracy"] for name in "abd"]
        expected["mean_per_category"] = np.mean(parts)
    outcomes = {"score": scores, "category": category}
    found = composition_scores(outcomes, weights, list("abcd"))
    empty = {name for name, value in found.items() if math.isnan(value)}
    assert {name[0] for name in empty} == {"c"}
    assert found.keys() - empty == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    alone = composition_scores(outcomes, weights, list("abcd"), each=False)
    assert not any(name.startswith(("a_", "c_")) for name in alone)


def test_chance_is_that_of_random_scores():
    rng = np.random.default_rng(0)
    for images, chances in ((2, (1 / 4, 1 / 4, 1 / 6)), (1, (1 / 2,))):
        scores = rng.normal(size=(200_000, images, 2))
        outcomes = {"score": scores, "category": np.zeros(200_000, "int64")}
        found = list(composition_scores(outcomes, each=False).values())
        np.testing.assert_allclose(found[: len(chances)], chances, atol=0.005)


@pytest.fixture
def pairs(tmp_path):
    """Winoground's form: the second example is told the wrong way round."""
    folder = tmp_path / "winoground"
    rows = []
    tags = "Object", "Relation", "Object"
    for number, tag in enumerate(tags):
        colors = NAMES[number % 3], NAMES[(number + 1) % 3]
        for side, color in enumerate(colors):
            file = folder / "images" / f"ex_{number}_img_{side}.png"
            paint(file, COLORS[color], 2 * number + side)
        captions = colors[::-1] if number == 1 else colors
        rows.append(
            {
                "id": number,
                **{f"image_{n}": f"ex_{number}_img_{n}" for n in range(2)},
                **{
                    f"caption_{n}": f"a {c} thing"
                    for n, c in enumerate(captions)
                },
                "collapsed_tag": tag,
            }
        )
    text = "\n".join(map(json.dumps, rows))
    (folder / "examples.jsonl").write_text(text + "\n")
    return folder


def test_winoground(pairs):
    result = measure_composition(
        Seer().embedder(), winoground(pairs), progress=False, samples=20
    )
    assert result["group_score"] == pytest.approx(2 / 3)
    assert result["object_group_score"] == 1 and result["examples"] == 3
    assert result["relation_text_score"] == 0
    assert result["chance_object_group_score"] == pytest.approx(1 / 6)
    assert result["chance_text_score"] == 1 / 4


def test_an_image_that_does_not_decode_takes_its_example_along(pairs):
    (pairs / "images" / "ex_0_img_1.png").write_bytes(b"no image")
    result = measure_composition(
        Seer().embedder(), winoground(pairs), progress=False, samples=0
    )
    assert (result["examples"], result["examples_skipped"]) == (2, 1)
    assert result["images_skipped"] == 1 and result["group_score"] == 1 / 2


@pytest.fixture
def crepe(tmp_path):
    """SugarCrepe's form; one caption of `swap_obj` is the wrong one."""
    folder, images = tmp_path / "crepe", tmp_path / "val2017"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        paint(images / f"{number:012d}.png", COLORS[name], number)
    for category in SUGAR_CREPE:
        rows = {}
        for number, name in enumerate(NAMES):
            captions = [f"a {name} bus", f"a {NAMES[number - 1]} bus"]
            if category == "swap_obj" and not number:
                captions.reverse()
            rows[str(number)] = {
                "filename": f"{number:012d}.png",
                "caption": captions[0],
                "negative_caption": captions[1],
            }
        (folder / f"{category}.json").write_text(json.dumps(rows))
    return folder, images


def test_sugar_crepe(crepe):
    result = measure_composition(
        Seer().embedder(), sugar_crepe(*crepe), progress=False, samples=20
    )
    assert result["accuracy"] == pytest.approx(20 / 21)
    assert result["swap_obj_accuracy"] == pytest.approx(2 / 3)
    assert result["mean_per_category"] == pytest.approx(20 / 21)
    assert (
        result["chance_accuracy"] == result["chance_mean_per_category"] == 0.5
    )
    # Each image once, though seven files name it.
    assert result["images"] == 3


@pytest.fixture
def genome(tmp_path):
    """ARO's form: one image whose halves have different colors."""
    folder = tmp_path / "aro"
    (folder / "images").mkdir(parents=True)
    pixels = np.zeros((8, 16, 3), "uint8")
    pixels[:, :8], pixels[:, 8:] = COLORS["red"], COLORS["blue"]
    Image.fromarray(pixels).save(folder / "images" / "1.png")
    for kind in ("relation", "attribution"):
        rows = [
            {
                "image_path": "1.png",
                "true_caption": f"a {right} wall",
                "false_caption": f"a {wrong} wall",
                "relation_name": f"left of {right}",
                "attributes": [right, wrong],
                **{"bbox_x": x, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8},
            }
            for x, right, wrong in ((0, "red", "blue"), (8, "blue", "red"))
        ]
        path = folder / f"visual_genome_{kind}.json"
        path.write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("kind", ["relation", "attribution"])
def test_visual_genome_crops_to_the_box(genome, kind):
    data = visual_genome(genome, kind)
    assert len(data.categories) == 2
    result = measure_composition(
        Seer().embedder(), data, progress=False, samples=0
    )
    assert result["accuracy"] == 1 and result["images"] == 2
    assert set(result.metrics) == {"accuracy", "mean_per_category"}


def test_a_crop_of_what_does_not_decode_is_left_out(genome):
    """Its file is named when it is embedded, as a whole image's would be."""
    path = genome / "visual_genome_relation.json"
    rows = json.loads(path.read_text())
    rows[0]["image_path"] = "2.png"
    path.write_text(json.dumps(rows))
    whole = (genome / "images" / "1.png").read_bytes()
    (genome / "images" / "2.png").write_bytes(whole[:40])
    result = measure_composition(
        Seer().embedder(), visual_genome(genome), progress=False, samples=0
    )
    assert (result["examples"], result["examples_skipped"]) == (1, 1)
    rows[1]["bbox_w"] = 0
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="row 1, `bbox_w` and `bbox_h` must"):
        visual_genome(genome)


def test_two_models_are_compared(crepe, tmp_path):
    class Blind(Seer):
        def texts(self, texts):
            return np.ones((len(texts), 3))

    files = []
    for name, seer in (("good", Seer()), ("blind", Blind())):
        result = measure_composition(
            seer.embedder(), sugar_crepe(*crepe), progress=False, samples=20
        )
        files.append(tmp_path / f"{name}.json")
        result.save(files[-1])
    found = compare_results(*files, samples=1000)
    row = next(r for r in found["metrics"] if r["name"] == "accuracy")
    # All captions score alike to one who is blind, and that is wrong.
    assert row["second"] == 0 and row["differs"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"negative_caption": None}, "row 0 lacks the field `negative_capt"),
        ({"caption": 7}, "row 0, the field `caption` must be a text"),
        ({"filename": " "}, "row 0, the field `filename` must be a text"),
    ],
)
def test_rows_that_lack_something_are_refused_by_name(crepe, change, words):
    path = crepe[0] / "swap_att.json"
    rows = json.loads(path.read_text())
    rows["0"].update(change)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=words) as error:
        sugar_crepe(*crepe)
    assert str(path) in str(error.value)


BOX = dict.fromkeys(("bbox_w", "bbox_h"), 30_000)


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("relation", BOX, "their product at most"),
        ("relation", {"bbox_w": float("inf")}, "`bbox_w` must be a number"),
        ("relation", {"bbox_x": float("nan")}, "`bbox_x` must be a number"),
        ("relation", {"bbox_y": -1e300}, "`bbox_y` must be a number"),
        ("relation", {"bbox_h": 10**400}, "`bbox_h` must be a number"),
        ("relation", {"true_caption": [1] * 10**5}, "`true_caption` must be"),
        ("attribution", {"attributes": 5}, "`attributes` must be a list"),
    ],
)
def test_hostile_boxes_are_refused_by_name(genome, kind, change, words):
    path = genome / ARO[kind]
    rows = json.loads(path.read_text())
    rows[0].update(change)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=words) as error:
        visual_genome(genome, kind)
    assert f"`{path}`, row 0" in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("allowed", [False, True])
def test_tables_and_images_that_are_links_are_refused(
    crepe, pairs, genome, tmp_path, allowed
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, (path, read) in enumerate(
        [
            (pairs / "examples.jsonl", lambda **o: winoground(pairs, **o)),
            (pairs / "images", lambda **o: winoground(pairs, **o)),
            (crepe[0] / "add_obj.json", lambda **o: sugar_crepe(*crepe, **o)),
            (genome / ARO["relation"], lambda **o: visual_genome(genome, **o)),
            (genome / "images", lambda **o: visual_genome(genome, **o)),
        ]
    ):
        target = path.rename(elsewhere / f"{number}{path.suffix}")
        path.symlink_to(target)
        if allowed:
            assert read(allow_outside=True).examples
        else:
            with pytest.raises(PermissionError, match=path.name):
                read()
        path.unlink()
        target.rename(path)


def test_images_outside_of_the_folder_are_refused(crepe, tmp_path):
    paint(tmp_path / "secret.png", COLORS["red"], 0)
    path = crepe[0] / "swap_att.json"
    rows = json.loads(path.read_text())
    rows["0"]["filename"] = "../secret.png"
    path.write_text(json.dumps(rows))
    with pytest.raises(PermissionError, match="leads out of"):
        measure_composition(
            Seer().embedder(), sugar_crepe(*crepe), progress=False
        )


def test_commands_and_the_suite(
    crepe, pairs, genome, tmp_path, monkeypatch, any_model
):
    from align_keras import embedding

    monkeypatch.setattr(
        embedding, "load_embedder", lambda model: Seer().embedder()
    )
    for test, folder, more in (
        ("winoground", pairs, ()),
        ("sugarcrepe", crepe[0], ("--images", str(crepe[1]))),
        ("vg-relation", genome, ()),
        ("vg-attribution", genome, ()),
    ):
        file = tmp_path / f"{test}.json"
        words = ["--test", test, "--data", str(folder), *more]
        words += ["--model", "seer", "--output", str(file), "--bootstrap", "9"]
        assert main(["evaluate", "composition", *words]) == 0
        assert json.loads(file.read_text())["task"] == "composition"
    wrong = ["--model", "seer", "--test", "winoground", "--data", str(pairs)]
    command = ["evaluate", "composition", *wrong, "--images", str(pairs)]
    assert main(command) == 2
    (tmp_path / "mscoco").mkdir()
    crepe[1].rename(tmp_path / "mscoco" / "val2017")
    crepe[0].rename(tmp_path / "sugarcrepe")
    jobs = {job.name: job for job in list_jobs(tmp_path)}
    for name in ("winoground", "sugarcrepe", "vg_relation", "vg_attribution"):
        job = jobs[f"composition-{name}"]
        assert all(path.exists() for path in job.needs)
        result = job.run(
            Seer().embedder(),
            batch_size=4,
            progress=False,
            cache=tmp_path / "vectors",
            samples=0,
        )
        assert result["dataset"] == name
