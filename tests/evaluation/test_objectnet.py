"""ObjectNet in its published layout, scored once more by brute force."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from seer import COLORS
from seer import Seer
from seer import paint

from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.evaluation import compare_results
from align_keras.evaluation import measure_all
from align_keras.evaluation import measure_zero_shot
from align_keras.evaluation import objectnet
from align_keras.evaluation.results import Result
from align_keras.evaluation.zero_shot import classification_chance

# Folders in an order other than that of their labels; ImageNet lacks a mug.
LABELS = {"z_clock": "Alarm clock", "b_pen": "Pen", "mug": "Mug", "tv": "TV"}
RIGHT = {"z_clock": [409, 530], "b_pen": [418, 563, 749], "tv": [851]}
IMAGES = {"z_clock": 7, "b_pen": 5, "mug": 3, "tv": 1}


def wordnet_id(number):
    return f"n{number:08d}"


def write_objectnet(folder, colors=None):
    """Images whose green tells which they are, in a red frame."""
    mappings = folder / "mappings"
    mappings.mkdir(parents=True)
    # The lines of ImageNet's labels are in an order of their own.
    line_of = np.random.default_rng(5).permutation(1000)
    lines = [""] * 1000
    for number, line in enumerate(line_of):
        lines[line] = f"thing {number}, object"
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines))
    files = {
        "folder_to_objectnet_label": LABELS,
        "pytorch_to_imagenet_2012_id": {
            str(number): int(line) for number, line in enumerate(line_of)
        },
        "objectnet_to_imagenet_1k": {
            LABELS[name]: "; ".join(f"thing {n}, object" for n in numbers)
            for name, numbers in RIGHT.items()
        },
    }
    for name, content in files.items():
        (mappings / f"{name}.json").write_text(json.dumps(content))
    number = 0
    for name, count in IMAGES.items():
        (folder / "images" / name).mkdir(parents=True)
        for _ in range(count):
            pixels = np.full((9, 8, 3), (255, 0, 0), "uint8")
            color = (0, number, 0) if colors is None else colors[name]
            pixels[2:-2, 2:-2] = color
            path = folder / "images" / name / f"{number:02d}.png"
            Image.fromarray(pixels).save(path)
            number += 1
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_objectnet(tmp_path_factory.mktemp("objectnet"))


def random_embedder(seed, seen=None):
    """Small whole vectors, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    rows = rng.choice([-1.0, 1.0], (16, 4))

    def images(batch):
        if seen is not None:
            seen.extend(batch)
        return rows[[int(pixels[0, 0, 1]) for pixels in batch]]

    def texts(prompts):
        return np.stack(
            [
                np.random.default_rng([seed, *prompt.encode()]).choice(
                    [-1.0, 1.0], 4
                )
                for prompt in prompts
            ]
        )

    return Embedder(f"random {seed}", images, texts), rows, texts


def measure(embedder, data, classes, **options):
    return measure_zero_shot(
        embedder, data, classes, ["{}"], progress=False, **options
    )


def write_classes(path, order):
    names = {wordnet_id(n): f"name {n}" for n in order}
    path.write_text(json.dumps({"classes": names}))
    return path


@pytest.mark.parametrize("all_classes", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_any_class_that_the_label_maps_to_is_right(
    folder, tmp_path, all_classes, seed
):
    embedder, rows, texts = random_embedder(seed)
    # Names in a file's own order; their ids tell which classes they are of.
    order = np.random.default_rng(seed).permutation(1000)
    classes = write_classes(tmp_path / "classes.json", order)
    found = measure(
        embedder,
        objectnet(folder),
        classes,
        all_classes=all_classes,
        samples=20,
    )
    competing = [int(n) for n in order]
    if not all_classes:
        overlap = sum(RIGHT.values(), [])
        competing = [n for n in competing if n in overlap]
    scores = rows @ texts([f"name {n}" for n in competing]).T
    hits = {k: [] for k in (1, 5)}
    by_class, chances = {}, {k: [] for k in (1, 5)}
    number = 0
    for name, count in IMAGES.items():
        for _ in range(count):
            ranking = np.argsort(-scores[number], kind="stable")
            first = [competing[n] for n in ranking]
            number += 1
            if name not in RIGHT:
                continue
            for k, right in hits.items():
                right.append(any(n in RIGHT[name] for n in first[:k]))
                total, many = len(competing), len(RIGHT[name])
                missed = math.comb(total - many, k) / math.comb(total, k)
                chances[k].append(1 - missed)
            by_class.setdefault(name, []).append(hits[1][-1])
    assert (found["images"], found["classes"]) == (13, len(competing))
    for k in (1, 5):
        assert found[f"top{k}"] == pytest.approx(np.mean(hits[k]), abs=1e-12)
        assert found[f"chance_top{k}"] == pytest.approx(np.mean(chances[k]))
        low, high = found["intervals"][f"top{k}"]
        assert low <= found[f"top{k}"] <= high
    mean = np.mean([np.mean(row) for row in by_class.values()])
    assert found["mean_per_class"] == pytest.approx(mean)
    assert found["classes_without_images"] == len(competing) - 6


def test_chance_is_what_random_scores_reach():
    labels, answers = np.array([0, 0, 0, 1, 2]), [[0, 3], [1, 2, 5], [4]]
    rng = np.random.default_rng(0)
    hits = {1: [], 3: []}
    per_class = []
    for _ in range(4000):
        orders = [rng.permutation(7) for _ in labels]
        for k, row in hits.items():
            row.append(
                np.mean(
                    [
                        bool({*order[:k]} & {*answers[label]})
                        for order, label in zip(orders, labels, strict=True)
                    ]
                )
            )
        right = np.array(
            [o[0] in answers[n] for o, n in zip(orders, labels, strict=True)]
        )
        per_class.append(np.mean([right[labels == n].mean() for n in range(3)]))
    chance = classification_chance(labels, answers, 7, (1, 3))
    # About five deviations of a mean of 4,000 draws.
    assert chance["top1"] == pytest.approx(np.mean(hits[1]), abs=0.017)
    assert chance["top3"] == pytest.approx(np.mean(hits[3]), abs=0.017)
    expected = np.mean(per_class)
    assert chance["mean_per_class"] == pytest.approx(expected, abs=0.02)


def test_the_red_frame_is_cut_off(folder):
    seen = []
    embedder, *_ = random_embedder(0, seen)
    measure(embedder, objectnet(folder), None, batch_size=4, samples=0)
    assert {pixels.shape for pixels in seen} == {(5, 4, 3)}
    assert not any(pixels[..., 0].any() for pixels in seen)


def test_without_names_objectnets_own_compete(folder):
    """As in DataComp, where the 113 labels are the classes."""
    data = objectnet(folder)
    assert data.class_names == ["pen", "tv", "alarm clock"]
    embedder, rows, texts = random_embedder(1)
    found = measure(embedder, data, None, samples=0)
    numbers = {"pen": range(7, 12), "tv": [15], "alarm clock": range(7)}
    best = np.argmax(rows @ texts(data.class_names).T, axis=1)
    hits = [
        best[number] == label
        for label, name in enumerate(data.class_names)
        for number in numbers[name]
    ]
    assert found["top1"] == pytest.approx(np.mean(hits))
    assert found["chance_top1"] == pytest.approx(1 / 3)


def test_an_image_that_is_all_frame_is_left_out(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "o")
    small = tmp_path / "o" / "images" / "z_clock" / "00.png"
    Image.new("RGB", (4, 9), (255, 0, 0)).save(small)
    embedder, *_ = random_embedder(0)
    found = measure(embedder, objectnet(tmp_path / "o"), None, samples=0)
    assert (found["images"], found["images_skipped"]) == (12, 1)
    assert "z_clock/00.png is left out: it has no pixels" in caplog.text


def test_what_is_not_as_published_is_named(folder, tmp_path):
    def changed(name, change):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    def unknown(copy):
        path = copy / "mappings" / "objectnet_to_imagenet_1k.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "TV": "thing 3; screen"}))

    with pytest.raises(
        ValueError, match="maps 'TV' to 'thing 3', which is not"
    ):
        objectnet(changed("unknown", unknown))

    def unnamed(copy):
        path = copy / "mappings" / "folder_to_objectnet_label.json"
        path.write_text(json.dumps({**LABELS, "tv": "Television"}))

    with pytest.raises(ValueError, match="no folder for the label 'TV'"):
        objectnet(changed("unnamed", unnamed))

    def unnumbered(copy):
        path = copy / "mappings" / "pytorch_to_imagenet_2012_id.json"
        path.write_text(json.dumps({"0": 1}))

    with pytest.raises(
        ValueError, match="is not a valid mapping of ObjectNet.*has 1="
    ):
        objectnet(changed("unnumbered", unnumbered))

    def partial(copy):
        shutil.rmtree(copy / "images" / "tv")

    with pytest.raises(FileNotFoundError, match="tv` has no images, and 1 of"):
        objectnet(changed("partial", partial))
    with pytest.raises(FileNotFoundError, match="folder_to_objectnet_label"):
        objectnet(
            changed("none", lambda copy: shutil.rmtree(copy / "mappings"))
        )
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    embedder, *_ = random_embedder(0)
    with pytest.raises(ValueError, match="1,000 classes.*Received: 2"):
        measure(embedder, objectnet(folder), few, samples=0)


def test_all_runs_sketches_and_objects(tmp_path, capsys, any_model):
    """The seer knows colors, of which each folder has one."""
    root = tmp_path / "data"
    colors = dict(zip(IMAGES, [*COLORS.values(), (0, 0, 0)], strict=True))
    colors["tv"] = COLORS["blue"]
    write_objectnet(root / "objectnet", colors)
    for number, color in zip((409, 418), COLORS.values(), strict=False):
        sketch = root / "imagenet_sketch" / wordnet_id(number) / "sketch_1.png"
        paint(sketch, color, number)
    names = {wordnet_id(n): f"thing {n}" for n in range(1000)}
    known = {530: "red", 409: "red thing", 749: "green", 418: "green thing"}
    known[851] = "blue"
    names.update((wordnet_id(n), name) for n, name in known.items())
    (root / "imagenet").mkdir()
    (root / "imagenet" / "classes.json").write_text(
        json.dumps({"classes": names, "templates": ["{}"]})
    )
    seer = Seer()
    blind = Embedder("blind", lambda b: np.ones((len(b), 3)), seer.texts)
    measured = measure_all(
        [seer.embedder(), blind], root, tmp_path / "out", 4, False, 50
    )
    found = {(r["model"], r["dataset"]): r for r in measured["results"]}
    objects = found["seer", "objectnet"]
    assert (objects["classes"], objects["top1"]) == (1000, 1.0)
    sketches = found["seer", "imagenet_sketch"]
    assert (sketches["classes"], sketches["top1"]) == (2, 1.0)
    paths = [
        str(tmp_path / "out" / name / "zero-shot-objectnet.json")
        for name in ("blind", "seer")
    ]
    (row, *_) = compare_results(*paths, samples=200)["metrics"]
    assert row["name"] == "top1" and row["difference"] > 0
    assert Result.load(paths[0])["top1"] < 1

    folder = str(root / "objectnet")
    command = ["evaluate", "zero-shot", "--model", "m", "--data", folder]
    assert main([*command, "--objectnet", "--tfds", "cifar10"]) != 0
    assert "`--objectnet` is for files" in capsys.readouterr().err
