"""Each language against the definitions, written once more query by query."""

import gzip
import json
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.evaluation import DataSet
from align_keras.evaluation import compare_results
from align_keras.evaluation import crossmodal3600
from align_keras.evaluation import measure_multilingual
from align_keras.evaluation import measure_retrieval
from align_keras.evaluation import multi30k
from align_keras.evaluation import suite
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.results import Result

COUNT = 14
# Images without a caption in a language, of which th lacks some and mi most.
LACKING = {"en": (), "th": (2, 5, 6), "mi": (*range(0, 9), 13)}


def texts_of(language, number):
    """One or two captions, or none."""
    if number in LACKING[language]:
        return []
    return [f"{language} {number} {n}" for n in range(1 + number % 2)]


def few_vectors(seeds, seed):
    """Vectors of few values, so that many scores are equal."""
    rows = [np.random.default_rng((seed, s)).integers(-1, 2, 3) for s in seeds]
    return np.array(rows) + 0.125


def embedder(seed, name="random", fingerprint=None):
    return Embedder(
        name,
        lambda batch: few_vectors([int(p[0, 0, 0]) for p in batch], seed),
        lambda texts: few_vectors(
            [zlib.crc32(t.encode()) for t in texts], seed
        ),
        fingerprint=fingerprint,
    )


def write_images(folder, names):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        pixels = np.full((4, 4, 3), 10 * number, "uint8")
        Image.fromarray(pixels).save(folder / name, "png")


@pytest.fixture
def xm3600(tmp_path):
    folder = tmp_path / "xm3600"
    keys = [f"{number:016x}" for number in range(COUNT)]
    write_images(folder / "images", [f"{key}.jpg" for key in keys])
    rows = []
    for number, key in enumerate(keys):
        row = {"image/key": key, "image/locale": "th"}
        for language in LACKING:
            texts = texts_of(language, number)
            row[language] = {"caption": texts, "caption/tokenized": texts}
        rows.append(row)
    # Some have no object of a language rather than an empty one.
    del rows[2]["th"]
    lines = [json.dumps(row) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def flickr(tmp_path):
    """Multi30k as it is published; its second task in another order."""
    names = [f"{number}.jpg" for number in range(COUNT)]
    write_images(tmp_path / "flickr30k" / "images", names)
    data = tmp_path / "multi30k" / "data"
    for task in ("task1", "task2"):
        for part in ("raw", "image_splits"):
            (data / task / part).mkdir(parents=True)
    listed = data / "task1" / "image_splits" / "test_2016_flickr.txt"
    listed.write_text("\n".join(names) + "\n")
    listed = data / "task2" / "image_splits" / "test_2016_images.txt"
    listed.write_text("\n".join(names[::-1]) + "\n")

    def write(name, lines):
        with gzip.open(data / f"{name}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    for language in ("fr", "cs"):
        lines = [f"{language} {number} 0" for number in range(COUNT)]
        write(f"task1/raw/test_2016_flickr.{language}", lines)
    for language in ("en", "de"):
        for n in range(1, 6):
            lines = [f"{language} {m} {n - 1}" for m in range(COUNT)[::-1]]
            write(f"task2/raw/test_2016.{n}.{language}", lines)
    return tmp_path / "multi30k", tmp_path / "flickr30k" / "images"


def brute_force(seed, captions):
    """Recalls of one language; `captions` are lists, one for each image."""

    def unit(rows):
        rows = rows.astype("float64")
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.astype("float32").astype("float64")

    texts = [text for group in captions for text in group]
    owner = [n for n, group in enumerate(captions) for _ in group]
    images = unit(few_vectors([10 * n for n in range(len(captions))], seed))
    scores = (
        images
        @ unit(few_vectors([zlib.crc32(t.encode()) for t in texts], seed)).T
    )
    scores = scores.astype("float32")
    hits = {}
    for n, group in enumerate(captions):
        found = sorted(range(len(texts)), key=lambda t, n=n: (-scores[n, t], t))
        for k in (1, 5, 10):
            if group:
                hits.setdefault(f"image_to_text_recall@{k}", []).append(
                    n in [owner[t] for t in found[:k]]
                )
    for t, n in enumerate(owner):
        found = sorted(
            range(len(captions)), key=lambda m, t=t: (-scores[m, t], m)
        )
        for k in (1, 5, 10):
            hits.setdefault(f"text_to_image_recall@{k}", []).append(
                n in found[:k]
            )
    found = {name: np.mean(values) for name, values in hits.items()}
    return {**found, "mean_recall": np.mean(list(found.values()))}


@pytest.mark.parametrize("seed", range(3))
def test_languages_are_measured_by_the_definition(seed, xm3600):
    result = measure_multilingual(
        embedder(seed), crossmodal3600(xm3600), progress=False, samples=40
    )
    expected = {
        language: brute_force(
            seed, [texts_of(language, n) for n in range(COUNT)]
        )
        for language in LACKING
    }
    assert list(result["by_language"]) == sorted(LACKING)
    for language, metrics in expected.items():
        row = result["by_language"][language]
        for name, value in metrics.items():
            assert row[name] == pytest.approx(value), (language, name)
            low, high = row["intervals"][name]
            assert low <= value <= high
        assert row["images_without_text"] == len(LACKING[language])
        mean = f"{language}_mean_recall"
        assert result[mean] == pytest.approx(metrics["mean_recall"])
        assert result["intervals"][mean] == row["intervals"]["mean_recall"]
    for name in expected["en"]:
        mean = np.mean([metrics[name] for metrics in expected.values()])
        assert result[name] == pytest.approx(mean)
    # Four images have one caption each in mi: chance among four, and 14.
    row = result["by_language"]["mi"]
    assert row["texts"] == 6 and result["images"] == COUNT
    assert row["chance_text_to_image_recall@5"] == pytest.approx(5 / 14)
    # Nothing but means, and the mean recall of each, stands at the top.
    assert len(result["intervals"]) == 7 + 3


def test_one_language_has_the_intervals_of_plain_retrieval(xm3600):
    def plain():
        found = crossmodal3600(xm3600, languages=["th"]).examples()
        return ((key, image, note["th"]) for key, image, note in found)

    options = {"progress": False, "samples": 50}
    expected = measure_retrieval(
        embedder(0), DataSet("plain", plain, COUNT), **options
    )
    result = measure_multilingual(
        embedder(0), crossmodal3600(xm3600), **options
    )
    row = result["by_language"]["th"]
    assert row["intervals"] == expected["intervals"]
    for name in (*expected["intervals"], "texts", "images_without_text"):
        assert row[name] == expected[name]
    for name in (n for n in expected if n.startswith("chance_")):
        assert row[name] == expected[name]


def test_results_are_shown_kept_and_compared(xm3600, tmp_path, capsys):
    data = crossmodal3600(xm3600, languages=["th", "en"])
    files = []
    for seed in (0, 1):
        result = measure_multilingual(
            embedder(seed, f"m{seed}"), data, progress=False, samples=30
        )
        files.append(tmp_path / f"{seed}.json")
        result.save(files[-1])
    rows = compare_results(*files, samples=30)["metrics"]
    assert [row["name"] for row in rows][6:] == [
        "mean_recall",
        "th_mean_recall",
        "en_mean_recall",
    ]
    kept = [Result.load(file) for file in files]
    for row in rows:
        difference = kept[1][row["name"]] - kept[0][row["name"]]
        assert row["difference"] == pytest.approx(difference)
        assert row["low"] <= difference <= row["high"]
    other = crossmodal3600(xm3600, languages=["en"])
    result = measure_multilingual(embedder(0), other, progress=False, samples=0)
    with pytest.raises(ValueError, match="languages="):
        compare_results(files[0], result)
    fewer = crossmodal3600(xm3600, languages=["th", "en"], captions_per_image=1)
    result = measure_multilingual(embedder(0), fewer, progress=False, samples=0)
    assert result["texts"] == 2 * COUNT - 3
    with pytest.raises(ValueError, match="not measured on the same queries"):
        compare_results(files[0], result)
    assert main(["evaluate", "compare", *map(str, files)]) == 0
    assert "th mean recall" in capsys.readouterr().out


def test_multi30k_is_read_as_it_is_published(flickr):
    data = multi30k(*flickr)
    result = measure_multilingual(embedder(3), data, progress=False, samples=0)
    assert result["texts"] == COUNT * (5 + 5 + 1 + 1)
    for language, several in (("en", 5), ("de", 5), ("fr", 1), ("cs", 1)):
        expected = brute_force(
            3,
            [
                [f"{language} {number} {n}" for n in range(several)]
                for number in range(COUNT)
            ],
        )
        row = result["by_language"][language]
        for name, value in expected.items():
            assert row[name] == pytest.approx(value), (language, name)


def test_files_that_do_not_fit_are_named(flickr, xm3600):
    raw = flickr[0] / "data" / "task1" / "raw"
    (raw / "test_2016_flickr.fr").write_text("un\ndeux\n")
    with pytest.raises(ValueError, match="flickr.fr` has 2 lines.* 14 images"):
        multi30k(*flickr)
    assert len(list(multi30k(*flickr, languages=["cs"]).examples())) == COUNT
    (raw / "test_2016_flickr.cs.gz").write_bytes(b"\x1f\x8b no")
    with pytest.raises(
        ValueError, match="flickr.cs.gz` cannot be read as gzip"
    ):
        multi30k(*flickr, languages=["cs"])
    with pytest.raises(ValueError, match="en, de, fr, cs. Received: es"):
        multi30k(*flickr, languages=["en", "es"])
    listed = flickr[0] / "data" / "task2" / "image_splits"
    names = listed / "test_2016_images.txt"
    names.write_text(names.read_text().replace("3.jpg", "99.jpg"))
    with pytest.raises(ValueError, match="same images.*99.jpg"):
        multi30k(*flickr, languages=["en"])
    names.unlink()
    with pytest.raises(FileNotFoundError, match="test_2016_images.txt"):
        multi30k(*flickr, languages=["en"])

    path = xm3600 / "captions.jsonl"
    with pytest.raises(ValueError, match="en, mi, th. Received: de"):
        crossmodal3600(xm3600, languages=["de"])
    with pytest.raises(ValueError, match="Received: captions_per_image=0"):
        crossmodal3600(xm3600, captions_per_image=0)
    good = path.read_text()
    for line, words in (
        ('{"en": {"caption": ["a"]}}', "row 15, the field `image/key`"),
        ('{"image/key": "a", "en": ["a"]}', "row 15, `en` must hold a list"),
        (good.splitlines()[3], "row 15.*a unique text"),
        ("{", "Row 15"),
    ):
        path.write_text(good + line + "\n")
        with pytest.raises(ValueError, match=words) as error:
            crossmodal3600(xm3600)
        assert str(path) in str(error.value)
    path.write_text(good)
    image = next((xm3600 / "images").iterdir())
    image.unlink()
    with pytest.raises(FileNotFoundError, match=image.name):
        list(crossmodal3600(xm3600).examples())


@pytest.mark.parametrize("allowed", [False, True])
def test_tables_that_are_links_are_refused(xm3600, flickr, tmp_path, allowed):
    folder, images = flickr
    raw = folder / "data" / "task1" / "raw" / "test_2016_flickr.fr.gz"
    for path, read in [
        (xm3600 / "captions.jsonl", lambda **o: crossmodal3600(xm3600, **o)),
        (xm3600 / "images", lambda **o: crossmodal3600(xm3600, **o)),
        (raw, lambda **o: multi30k(folder, images, **o)),
    ]:
        target = path.rename(tmp_path / f"elsewhere-{path.name}")
        path.symlink_to(target)
        if allowed:
            assert read(allow_outside=True).total == COUNT
        else:
            with pytest.raises(PermissionError, match=path.name):
                read()
        path.unlink()
        target.rename(path)


def test_any_number_of_languages_is_read(xm3600):
    path = xm3600 / "captions.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row |= {str(number): {"caption": ["a"]} for number in range(100_000)}
    path.write_text(json.dumps(row))
    start = time.perf_counter()
    (example,) = crossmodal3600(xm3600).examples()
    # Compared with each other, they take minutes.
    assert time.perf_counter() - start < 20
    assert len(example[2]) == 100_000 + len(LACKING)


def test_a_language_without_any_caption_is_named(xm3600):
    path = xm3600 / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["th"] = {"caption": [" "]}
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="no caption in the language `th`"):
        measure_multilingual(
            embedder(0), crossmodal3600(xm3600), progress=False
        )


def test_commands_and_the_suite(
    xm3600, flickr, tmp_path, monkeypatch, capsys, any_model
):
    from align_keras import embedding

    monkeypatch.setattr(embedding, "load_embedder", lambda _: embedder(0))
    words = ["evaluate", "multilingual", "--model", "m", "--bootstrap", "9"]
    of_xm = ["--test", "xm3600", "--data", str(xm3600)]
    assert main([*words, *of_xm]) == 0
    said = capsys.readouterr().out
    assert "14 images, " in said and "3 languages" in said
    assert "3 images without a caption in th" in said
    table = said[said.index("\nlanguage ") :].splitlines()
    (row,) = [line for line in table if line.startswith("mi ")]
    assert row.split()[1] == "6"
    of_flickr = ["--test", "multi30k", "--data", str(flickr[0])]
    assert main([*words, *of_flickr]) == 2
    assert "needs `--images`" in capsys.readouterr().err
    of_flickr += ["--images", str(flickr[1]), "--languages", "de", "cs"]
    assert main([*words, *of_flickr, "--captions-per-image", "1"]) == 2
    assert main([*words, *of_flickr]) == 0
    # The paper's row of Table 11.
    said = capsys.readouterr().out
    (row,) = [s for s in said.splitlines() if s.startswith("de mean recall")]
    assert row.endswith("84.1%")
    found = suite.measure_all(
        [embedder(0, fingerprint="f")],
        tmp_path,
        tmp_path / "out",
        progress=False,
        samples=9,
    )
    assert [r["dataset"] for r in found["results"]] == ["multi30k", "xm3600"]
    # Each file of captions tells whether it has changed.
    needs = {job.name: job.needs for job in suite.list_jobs(tmp_path)}
    assert len(needs["multilingual-multi30k"]) == 1 + 2 * 5 + 2 + 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## multilingual: xm3600" in report and "| mi | 6 |" in report
    (row,) = [s for s in report.splitlines() if s.startswith("| cs mean")]
    assert "| 63.2 |" in row


def test_a_language_whose_name_begins_as_another(xm3600):
    path = xm3600 / "captions.jsonl"
    other = {"en": "pt_BR", "th": "pt"}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{other.get(k, k): v for k, v in row.items()} for row in rows]
    options = {"progress": False, "samples": 20}
    alone = measure_multilingual(
        embedder(0), crossmodal3600(xm3600, languages=["th"]), **options
    )
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = crossmodal3600(xm3600, languages=["pt", "pt_BR"])
    result = measure_multilingual(embedder(0), data, **options)
    assert result["by_language"]["pt"] == alone["by_language"]["th"]
    assert "pt_BR" in describe_result(result)
