"""DataComp's tasks on small archives, scored once more by brute force."""

import io
import itertools
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from align_keras.embedding import Embedder
from align_keras.evaluation import compare_results
from align_keras.evaluation import measure_all
from align_keras.evaluation import measure_datacomp
from align_keras.evaluation import winogavil as winogavil_module
from align_keras.evaluation.datacomp import METRICS
from align_keras.evaluation.datacomp import _chance
from align_keras.evaluation.datacomp import _with_means
from align_keras.evaluation.datacomp import task_metric
from align_keras.evaluation.datacomp_tasks import GROUPS
from align_keras.evaluation.datacomp_tasks import TASKS
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.results import Result

TEMPLATES = ["a photo of {c}.", "{c}"]


# === Definitions ===


def brute_force(metric, rows):
    """The metric of a list of (label, rank, predicted, group)."""
    hits = {
        "accuracy": [rank == 0 for _, rank, _, _ in rows],
        "top5": [rank < 5 for _, rank, _, _ in rows],
    }
    if metric == "accuracy":
        return np.mean(hits["accuracy"])
    if metric == "macro_f1":
        scores = []
        for own in {label for label, *_ in rows}:
            right = sum(p == own == label for label, _, p, _ in rows)
            taken = sum(p == own for _, _, p, _ in rows)
            images = sum(label == own for label, *_ in rows)
            precision = right / taken if taken else 0
            recall = right / images
            total = precision + recall
            scores.append(2 * precision * recall / total if right else 0)
        return np.mean(scores)
    place = 0 if metric == "mean_per_class" else 3
    known = hits["top5" if metric.endswith("top5") else "accuracy"]
    shares = [
        np.mean(
            [h for h, row in zip(known, rows, strict=True) if row[place] == g]
        )
        for g in {row[place] for row in rows}
    ]
    return min(shares) if metric.startswith("worst") else np.mean(shares)


@pytest.mark.parametrize(
    "metric", sorted({*METRICS} - {"mean_recall", "jaccard"})
)
@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_the_definition(metric, seed):
    rng = np.random.default_rng(seed)
    label, predicted = rng.choice([0, 1, 2, 6], 60), rng.choice([1, 2, 5], 60)
    rank = np.where(label == predicted, 0, rng.integers(1, 9, 60))
    # No image is of the group 2.
    group = rng.choice([0, 1, 3], 60)
    weights = rng.integers(0, 3, 60)
    outcomes = {
        "label": label,
        "rank": rank,
        "predicted": predicted,
        "group": group,
    }
    rows = list(zip(label, rank, predicted, group, strict=True))
    assert task_metric(metric, outcomes) == pytest.approx(
        brute_force(metric, rows), abs=1e-12
    )
    drawn = [r for r, n in zip(rows, weights, strict=True) for _ in range(n)]
    assert task_metric(metric, outcomes, weights) == pytest.approx(
        brute_force(metric, drawn), abs=1e-12
    )


def test_associations_are_compared_as_sets():
    rng = np.random.default_rng(0)
    for count, right in ((5, 2), (10, 3), (6, 5)):
        scores = rng.integers(0, 4, count).astype("float32")
        wanted = rng.permutation(count) < right
        # Python sorts stably, too.
        best = sorted(range(count), key=lambda n: -scores[n])[:right]
        own = {*np.flatnonzero(wanted)}
        expected = len(own & {*best}) / len(own | {*best})
        assert winogavil_module.jaccard(scores, wanted) == expected
    orders = itertools.permutations([True, True, False, False, False])
    means = [
        winogavil_module.jaccard(-np.arange(5.0), np.array(order))
        for order in orders
    ]
    chance = winogavil_module.jaccard_chance(5, 2)
    assert chance == pytest.approx(np.mean(means))
    assert winogavil_module.prompt("Apple") == "An apple"
    assert winogavil_module.prompt("horse") == "A horse"


def test_chance_of_f1_is_that_of_many_guesses():
    rng = np.random.default_rng(1)
    label = rng.choice(4, 100_000, p=[0.7, 0.2, 0.05, 0.05])
    outcomes = {"label": label, "predicted": rng.integers(0, 5, len(label))}
    guessed = task_metric("macro_f1", outcomes)
    assert _chance("macro_f1", outcomes, 5) == pytest.approx(guessed, abs=0.003)


def test_the_mean_is_called_the_average_of_all_tasks_alone():
    """13 of VTAB, 6 shifts of ImageNet and 3 of retrieval are groups."""
    assert len(TASKS) == 38
    assert [len(names) for names in GROUPS.values()] == [6, 13, 3]
    values = {name: number / 38 for number, name in enumerate(TASKS)}
    means = _with_means(values)
    assert means["average"] == pytest.approx(np.mean([*values.values()]))
    shifts = [values[name] for name in GROUPS["imagenet_shifts"]]
    assert means["imagenet_shifts"] == pytest.approx(np.mean(shifts))
    del values["winogavil"]
    means = _with_means(values)
    assert means["mean_of_measured"] == pytest.approx(
        np.mean([*values.values()])
    )
    assert "average" not in means and "retrieval" not in means
    assert "vtab" in means


def test_tfds_has_as_many_named_classes():
    import tensorflow_datasets as tfds

    for name, task in TASKS.items():
        if task.tfds:
            label = tfds.builder(task.tfds[0]).info.features["label"]
            assert label.num_classes == task.classes, name


# === Files ===


def png(pixel):
    file = io.BytesIO()
    Image.new("RGB", (3, 3), (pixel, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_archives(folder, labels, classes, groups=None, first=0):
    """Two archives of images whose red tells which they are."""
    (folder / "test").mkdir(parents=True)
    names = "\n".join(f"{folder.name} class {n}" for n in range(classes))
    (folder / "classnames.txt").write_text(names + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "\n".join(TEMPLATES) + "\n"
    )
    (folder / "test" / "nshards.txt").write_text("2\n")
    half = len(labels) // 2
    for shard, part in enumerate((range(half), range(half, len(labels)))):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for n in part:
                files = {"cls": str(labels[n]).encode(), "png": png(first + n)}
                if groups is not None:
                    file = io.BytesIO()
                    np.save(file, np.array([groups[n], 77]))
                    files["npy"] = file.getvalue()
                for suffix, contents in files.items():
                    header = tarfile.TarInfo(f"s{n:07d}.{suffix}")
                    header.size = len(contents)
                    tar.addfile(header, io.BytesIO(contents))


def model(seed, fingerprint=None):
    """Random vectors, of images by their red and of texts by their letters."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(256, 5))

    def texts(prompts):
        draws = [np.random.default_rng([seed, *p.encode()]) for p in prompts]
        return np.stack([draw.normal(size=5) for draw in draws])

    return Embedder(
        f"random {seed}",
        lambda batch: rows[[int(pixels[0, 0, 0]) for pixels in batch]],
        texts,
        fingerprint=fingerprint,
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


TASK_FILES = {
    "cifar10": (10, 20),
    "caltech101": (102, 25),
    "iwildcam": (182, 30),
    "fmow": (62, 40),
    "dollar_street": (58, 40),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five tasks in archives, captions and associations in folders."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(3)
    for name, (classes, count) in TASK_FILES.items():
        folder = root / "datacomp" / f"wds_{TASKS[name].archives}_test"
        labels = rng.integers(0, min(classes, 6), count).tolist()
        groups = None
        if TASKS[name].metric.startswith("worst"):
            groups = rng.choice([0, 2, 5], count).tolist()
        write_archives(folder, labels, classes, groups)
        (folder / "truth.json").write_text(json.dumps([labels, groups]))
    rows = ["cue,candidates,associations"]
    for number, count in enumerate([10, 12, 5]):
        names = [f"thing {n}" for n in range(number, number + count)]
        listed = [json.dumps(n).replace('"', '""') for n in (names, names[1:4])]
        rows.append(f'Cue{number},"{listed[0]}","{listed[1]}"')
    (root / "winogavil" / "images").mkdir(parents=True)
    (root / "winogavil" / "winogavil_dataset.csv").write_text("\n".join(rows))
    for n in range(13):
        path = root / "winogavil" / "images" / f"thing {n}.png"
        path.write_bytes(png(100 + n))
    images = root / "flickr30k" / "images"
    images.mkdir(parents=True)
    listed = []
    for n in range(4):
        (images / f"{n}.png").write_bytes(png(200 + n))
        sentences = [{"raw": f"caption {n} {m}"} for m in range(5)]
        listed.append(
            {"filename": f"{n}.png", "split": "test", "sentences": sentences}
        )
    (root / "flickr30k" / "dataset_flickr30k.json").write_text(
        json.dumps({"images": listed})
    )
    return root


def classified(root, name, embedder):
    """The rows of `brute_force` of a task, from its files alone."""
    folder = root / "datacomp" / f"wds_{TASKS[name].archives}_test"
    labels, groups = json.loads((folder / "truth.json").read_text())
    classes = []
    for line in (folder / "classnames.txt").read_text().splitlines():
        prompts = [template.format(c=line) for template in TEMPLATES]
        classes.append(unit(unit(embedder.texts(prompts)).mean(axis=0)))
    pixels = [np.full((1, 1, 3), n) for n in range(len(labels))]
    scores = unit(embedder.images(pixels)) @ np.stack(classes).T
    orders = np.argsort(-scores, axis=1)
    return [
        (label, order.tolist().index(label), order[0], group)
        for label, order, group in zip(
            labels, orders, groups or [0] * len(labels), strict=True
        )
    ]


@pytest.fixture(scope="module")
def measured(root):
    return measure_datacomp(model(0), root, 8, False, samples=40)


def test_tasks_are_measured_by_the_definition(root, measured):
    embedder = model(0)
    for name, (classes, _) in TASK_FILES.items():
        metric = TASKS[name].metric
        expected = brute_force(metric, classified(root, name, embedder))
        assert measured[f"task_{name}"] == pytest.approx(expected), name
        guesses = 5 if metric.endswith("top5") else 1
        if metric != "macro_f1":
            chance = measured[f"chance_task_{name}"]
            assert chance == pytest.approx(guesses / classes)
    jaccards = []
    for number, count in enumerate([10, 12]):
        shown = [np.full((1, 1, 3), 100 + number + n) for n in range(count)]
        cue = unit(embedder.texts([f"A cue{number}"]))[0]
        order = np.argsort(-(unit(embedder.images(shown)) @ cue))
        best, right = {*order[:3].tolist()}, {1, 2, 3}
        jaccards.append(len(best & right) / len(best | right))
    assert measured["task_winogavil"] == pytest.approx(np.mean(jaccards))
    captions = [f"caption {n} {m}" for n in range(4) for m in range(5)]
    shown = [np.full((1, 1, 3), 200 + n) for n in range(4)]
    scores = unit(embedder.images(shown)) @ unit(embedder.texts(captions)).T
    to_text = np.mean(scores.argmax(axis=1) // 5 == np.arange(4))
    to_image = np.mean(scores.argmax(axis=0) == np.arange(20) // 5)
    recall = (to_text + to_image) / 2
    assert measured["task_flickr30k"] == pytest.approx(recall)
    tasks = [*TASK_FILES, "winogavil", "flickr30k"]
    assert {*measured["tasks"]} == {*tasks}
    values = [measured[f"task_{name}"] for name in tasks]
    assert measured["mean_of_measured"] == pytest.approx(np.mean(values))
    assert measured["sources"]["cifar10"] == "archives"
    for name in measured.metrics:
        low, high = measured["intervals"][name]
        assert low <= measured[name] <= high or name.startswith("task_")
    text = describe_result(measured)
    assert "7 of 38 tasks" in text
    assert "country211: there is no " in text
    assert "wds_country211_test" in text


def test_one_damaged_task_is_named_and_the_others_are_measured(tmp_path):
    folders = {}
    for name, classes in (
        *(("cifar10", 10), ("mnist", 10), ("stl10", 10), ("svhn", 10)),
        *(("gtsrb", 43), ("voc2007", 20), ("dtd", 46), ("geode", 40)),
        ("food101", 101),
    ):
        folder = tmp_path / "datacomp" / f"wds_{TASKS[name].archives}_test"
        label = 10 if name == "svhn" else 3
        write_archives(folder, [label] * 4, classes)
        folders[name] = folder
    (folders["mnist"] / "test" / "1.tar").unlink()
    whole = (folders["stl10"] / "test" / "0.tar").read_bytes()
    # Between two files, where no header is cut.
    (folders["stl10"] / "test" / "0.tar").write_bytes(whole[:2048])
    linked = folders["food101"] / "test" / "0.tar"
    linked.rename(tmp_path / "elsewhere.tar")
    linked.symlink_to(tmp_path / "elsewhere.tar")
    (folders["gtsrb"] / "test" / "nshards.txt").write_text("two")
    templates = folders["voc2007"] / "zeroshot_classification_templates.txt"
    templates.write_text("a photo\n")
    found = measure_datacomp(model(0), tmp_path, 4, False, samples=0)
    assert found["tasks"] == ["cifar10"]
    reasons = {
        "mnist": "1.tar`, which is one of the 2 archives",
        "stl10": "it is cut off",
        "svhn": "has the label 10, but there are only 10 class",
        "gtsrb": "must contain the number of archives. Received: 'two'",
        "food101": "leads out of",
        "voc2007": "must hold `{}` once",
        "dtd": "has 46 classes, but the task has 47",
        "geode": "`s0000000` has no .npy",
    }
    assert found["tasks_failed"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found["tasks_failed"][name]
    (folders["cifar10"] / "test" / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="No task of DataComp could be"):
        measure_datacomp(model(0), tmp_path, 4, False, samples=0)


def test_all_measures_it_and_compares_models(root, tmp_path, caplog):
    embedders = [model(0, "first"), model(1, "second")]

    def run():
        return measure_all(embedders, root, tmp_path, 8, False, 30)

    found = run()
    results = [r for r in found["results"] if r["task"] == "datacomp"]
    assert len(results) == 2
    report = (tmp_path / "report.md").read_text()
    assert "| task fmow |" in report and "| mean of measured |" in report
    assert "- country211: there is no" in report
    paths = [tmp_path / f"random-{n}" / "datacomp.json" for n in (0, 1)]
    rows = compare_results(*paths, samples=60)["metrics"]
    names = {row["name"] for row in rows}
    assert {"mean_of_measured", "task_iwildcam", "task_winogavil"} <= names
    (mean,) = (row for row in rows if row["name"] == "mean_of_measured")
    differences = [results[1][n] - results[0][n] for n in names]
    assert mean["difference"] in differences
    # Equal draws of equal outcomes cannot differ.
    same = compare_results(paths[0], paths[0], samples=60)["metrics"]
    assert all(row["low"] == row["high"] == 0 for row in same)
    other = Result.load(paths[1])
    other.outcomes["fmow.group"] = other.outcomes["fmow.group"][::-1]
    with pytest.raises(ValueError, match="differ in `fmow.group`"):
        compare_results(Result.load(paths[0]), other, samples=10)


def test_tfds_stands_in_where_archives_are_missing(tmp_path):
    import tensorflow_datasets as tfds

    (tmp_path / "tfds" / "cifar10").mkdir(parents=True)
    found_nothing = "The first reason: .'cifar10', 'The TFDS data set"
    with pytest.raises(ValueError, match=found_nothing):
        measure_datacomp(model(0), tmp_path, 4, False, samples=0)
    with tfds.testing.mock_data(num_examples=5):
        found = measure_datacomp(model(0), tmp_path, 4, False, samples=0)
    assert found["tasks"] == ["cifar10"]
    assert found["sources"] == {"cifar10": "tfds"}
    assert found["images"] == 5


def test_folders_stand_in_and_others_of_their_name_are_refused(tmp_path):
    for n in range(200):
        folder = tmp_path / "imagenet_r" / f"n{n:08d}"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(n))
    # Of the 1,000 names those of the folders compete.
    names = {f"n{n:08d}": f"thing {n}" for n in range(1000)}
    (tmp_path / "imagenet" / "val" / "n00000001").mkdir(parents=True)
    (tmp_path / "imagenet" / "val" / "n00000001" / "0.png").write_bytes(png(1))
    (tmp_path / "imagenet" / "classes.json").write_text(
        json.dumps({"classes": names, "templates": ["{}"]})
    )
    embedder = model(2)
    found = measure_datacomp(embedder, tmp_path, 50, False, samples=0)
    assert found["tasks"] == ["imagenet_r"]
    assert found["sources"] == {"imagenet_r": "folder"}
    reason = found["tasks_failed"]["imagenet"]
    assert "val` has 1 classes, but the task has 1000" in reason
    shown = [np.full((1, 1, 3), n) for n in range(200)]
    prompts = unit(embedder.texts([f"thing {n}" for n in range(200)]))
    best = np.argmax(unit(embedder.images(shown)) @ prompts.T, axis=1)
    expected = np.mean(best == np.arange(200))
    assert found["task_imagenet_r"] == pytest.approx(expected)


def test_an_example_with_an_unreadable_image_is_counted(root, tmp_path):
    shutil.copytree(root / "winogavil", tmp_path / "winogavil")
    # Of the second example alone; the third is too short to be taken.
    (tmp_path / "winogavil" / "images" / "thing 12.png").write_bytes(b"")
    found = measure_datacomp(model(0), tmp_path, 8, False, samples=0)
    assert (found["images_skipped"], found["examples_skipped"]) == (1, 1)
    assert len(found.outcomes["winogavil.score"]) == 1
    text = describe_result(found)
    assert "1 examples left out, 1 left out as not readable" in text
    names = tmp_path / "winogavil" / "winogavil_dataset.csv"
    names.write_text("cue,candidates,associations\ncue,[],not JSON\n")
    with pytest.raises(ValueError, match="In row 1 of .*`associations` must"):
        measure_datacomp(model(0), tmp_path, 8, False, samples=0)
