"""Scores of pairs against loops over vectors, from every kind of source."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_align import image_file

from align_keras.cli import main
from align_keras.curation import explain
from align_keras.curation.scores import pair_key
from align_keras.data import pack
from align_keras.embedding import as_embedder
from align_keras.embedding import parts
from align_keras.embedding import score
from align_keras.embedding import score_files
from align_keras.embedding.score_files import score_blocks

WORDS = "red blue green bus dog house".split()


def read(directory):
    rows = []
    for path in sorted(directory.glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


# === Blocks ===


def unit(rng, count, dim=5):
    # Whole numbers, so that some tie.
    vectors = rng.integers(-1, 2, (count, dim)) + 1e-3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        "float32"
    )


def loops(pairs, texts, first, last):
    """What a row of a block has, by comparing it with each other one."""
    keys, captions, images = zip(*pairs, strict=True)

    def cosine(image, text):
        one = images[image].astype("float64")
        return np.float32(one @ texts[captions[text]].astype("float64"))

    rows = []
    for row in range(first, last):
        others = [
            n
            for n in range(first, last)
            if keys[n] != keys[row] and captions[n] != captions[row]
        ]
        expected = {
            "key": keys[row],
            "text": captions[row],
            "pair_key": pair_key(keys[row], captions[row]),
            "score": cosine(row, row),
            "compared": len(others),
        }
        for name, of, named in (
            ("nearest_text", lambda n, row=row: cosine(row, n), captions),
            ("nearest_image", lambda n, row=row: cosine(n, row), keys),
        ):
            best = max(others, key=of, default=None)
            value = None if best is None else of(best)
            expected[name] = None if best is None else named[best]
            expected[f"{name}_score"] = value
        rows.append(expected)
    return rows


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 21])
def test_blocks_give_what_loops_give(count):
    rng = np.random.default_rng(count)
    vectors = unit(rng, count)
    captions = rng.choice(["a", "b", "c", "d", "e", "f"], count)
    pairs = [
        # Some images have several captions, and captions several images.
        (f"{number // 2 if number < 6 else number}.jpg", str(text), vector)
        for number, (text, vector) in enumerate(
            zip(captions, vectors, strict=True)
        )
    ]
    texts = dict(zip("abcdef", unit(rng, 6), strict=True))
    asked = []

    def encode(different):
        asked.append(different)
        return np.stack([texts[text] for text in different])

    found = []
    for batch in score_blocks(iter(pairs), encode, 8):
        found += batch.to_pylist()
    expected = []
    for first in range(0, count, 8):
        last = min(first + 8, count)
        # The last block reaches back.
        start = max(0, last - 8)
        expected += loops(pairs, texts, start, last)[first - start :]
    assert len(found) == len(expected) == count
    assert all(len(set(part)) == len(part) for part in asked)
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if name.endswith("score") and value is not None:
                assert one[name] == pytest.approx(value, abs=1e-7)
            else:
                assert one[name] == value, name


# === Files ===


@pytest.fixture(scope="module", autouse=True)
def loaded_once(dual_encoder):
    """The model of the preset, without compiling it for each call."""
    embedder = as_embedder(dual_encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "load_embedder", lambda path, strategy: embedder)
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with a table of captions, and the pairs that can be scored."""
    folder = tmp_path_factory.mktemp("pairs") / "images"
    (folder / "sub").mkdir(parents=True)
    rows, good = [], []
    for number in range(10):
        name = f"sub/{number}.jpg" if number % 2 else f"{number}.jpg"
        (folder / name).write_bytes(image_file(number))
        for caption in range(1 + number % 3):
            text = f"a {WORDS[number % 6]} near the {WORDS[caption]}"
            rows.append((name, text))
            good.append((name, text))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    rows += [("broken.jpg", "a dog"), ("broken.jpg", "a bus")]
    rows += [("missing.jpg", "a house"), ("0.jpg", " ")]
    (folder / "unlisted.jpg").write_bytes(image_file(99))
    lines = [json.dumps({"image": n, "caption": t}) for n, t in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder, good


@pytest.fixture(scope="module")
def scored(library, pairs, loaded_once, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored") / "scores"
    settings = {"batch_size": 8, "images_per_shard": 4, "block_size": 6}
    manifest = score(pairs[0], output, library.preset, **settings)
    return output, manifest, settings


def test_scores_are_the_models_cosines(scored, pairs, dual_encoder):
    folder, good = pairs
    output, manifest, _ = scored
    rows = read(output)
    in_order = sorted(good, key=lambda pair: pair[0])
    assert [(r["key"], r["text"]) for r in rows] == in_order
    images = np.asarray(
        dual_encoder.encode_image([str(folder / r["key"]) for r in rows])
    )
    texts = np.asarray(dual_encoder.encode_text([r["text"] for r in rows]))
    own = [row["score"] for row in rows]
    np.testing.assert_allclose(own, (images * texts).sum(1), rtol=0, atol=1e-5)
    assert np.ptp(own) > 0.01
    # Nothing but what is named is lost: two captions of the broken image, the
    # missing image, and the one that is not listed.
    assert manifest["records"] == len(good)
    assert manifest["skipped"] == 4
    named = []
    for path in sorted(output.glob("*.parquet")):
        about = json.loads(pq.read_metadata(path).metadata[b"align_keras"])
        assert about["block_size"] == 6
        named += about["skipped_images"]
    assert {name for name, _ in named} == {
        "broken.jpg",
        "missing.jpg",
        "unlisted.jpg",
    }
    assert manifest["arguments"]["block_size"] == 6
    for row in rows:
        assert row["compared"] > 0 and row["nearest_image"] != row["key"]


def by_stem(rows):
    return {
        (row["key"].rsplit(".", 1)[0], row["text"]): row["score"]
        for row in rows
    }


def test_every_source_gives_the_same_scores(scored, pairs, library, tmp_path):
    folder, good = pairs
    expected = by_stem(read(scored[0]))
    pack(folder, tmp_path / "packed")
    texts = {}
    for name, text in good:
        texts.setdefault(name, []).append(text)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for name, captions in texts.items():
            (tmp_path / "t.txt").write_text("\n".join(captions))
            tar.add(folder / name, name)
            tar.add(tmp_path / "t.txt", f"{name.rsplit('.', 1)[0]}.txt")
    images = [
        {"bytes": (folder / name).read_bytes(), "path": name} for name in texts
    ]
    table = pa.table({"image": images, "caption": list(texts.values())})
    (tmp_path / "tables").mkdir()
    pq.write_table(table, tmp_path / "tables" / "0.parquet")
    paths = pa.table(list(zip(*good, strict=True)), ["where", "said"])
    pq.write_table(paths, folder / "listed.parquet")
    paths = {"image_column": "where", "caption_column": "said"}
    for source, given in {
        tmp_path / "packed": {},
        tmp_path / "tars": {},
        tmp_path / "tables" / "0.parquet": {},
        folder / "listed.parquet": paths,
    }.items():
        output = tmp_path / f"scores-{source.name}"
        score(source, output, library.preset, batch_size=8, **given)
        found = by_stem(read(output))
        assert found.keys() == expected.keys(), source
        for pair, value in found.items():
            assert value == pytest.approx(expected[pair], abs=1e-5)
    (folder / "listed.parquet").unlink()


def test_it_resumes_with_what_is_missing(
    scored, pairs, library, tmp_path, monkeypatch
):
    output, settings = tmp_path / "scores", scored[2]
    done, original = [], score_files.score_task

    def stopped(task, *arguments):
        if done:
            raise KeyboardInterrupt
        done.append(task["file"])
        return original(task, *arguments)

    monkeypatch.setattr(score_files, "score_task", stopped)
    with pytest.raises(KeyboardInterrupt):
        score(pairs[0], output, library.preset, **settings)
    assert len(list(output.glob("*.parquet"))) == 1
    assert not (output / "manifest.json").exists()
    monkeypatch.setattr(score_files, "score_task", original)
    before = os.stat(done[0]).st_mtime_ns
    manifest = score(pairs[0], output, library.preset, **settings)
    assert os.stat(done[0]).st_mtime_ns == before
    assert {**manifest, "shards": 0} == {**scored[1], "shards": 0}
    for one, other in zip(read(output), read(scored[0]), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    with pytest.raises(ValueError, match="scores with block_size=6, but"):
        score(pairs[0], output, library.preset, **settings | {"block_size": 7})


KILLED = """
import os, signal, sys
import numpy as np
from align_keras.embedding import Embedder, parts, score
from align_keras.embedding.score_files import RowWriter

write, count = RowWriter.write, [0]

def die(self, batch):
    write(self, batch)
    count[0] += 1
    if count[0] == 3:
        self._flush()
        os.kill(os.getpid(), signal.SIGKILL)

def vectors(batch):
    return np.ones((len(batch), 4))

RowWriter.write = die
parts.load_embedder = lambda *_: Embedder("", vectors, vectors)
source, output, model = sys.argv[1:]
score(source, output, model, batch_size=8, images_per_shard=4, block_size=6)
"""


@pytest.mark.multiprocess
def test_a_killed_run_leaves_whole_files(scored, pairs, library, tmp_path):
    output = tmp_path / "scores"
    command = [sys.executable, "-c", KILLED, pairs[0], output, library.preset]
    done = subprocess.run(list(map(str, command)), capture_output=True)
    assert done.returncode == -9, done.stderr[-2000:]
    first = sorted(output.glob("scores-*.parquet"))
    assert 1 <= len(first) < 3
    for path in first:
        assert pq.read_metadata(path).num_rows
    manifest = score(pairs[0], output, library.preset, **scored[2])
    assert {**manifest, "shards": 0} == {**scored[1], "shards": 0}
    assert len(read(output)) == len(pairs[1])
    names = [path.name for path in output.iterdir()]
    assert not [name for name in names if "unfinished" in name], names


def test_commands_from_images_to_kept_rows(pairs, library, tmp_path, capsys):
    """`score` and `curate`, of which the latter joins by path and text."""
    folder, good = pairs
    command = ["score", folder, "--model", library.preset, "--json"]
    command += ["--output", tmp_path / "scores", "--batch-size", 8]
    assert main([str(word) for word in command]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == len(good)
    (tmp_path / "rules.yaml").write_text(
        "scores: scores\nrules: [{similarity: {keep_share: 0.5}}]\n"
    )
    command = ["curate", folder / "captions.jsonl", "--output"]
    command += [tmp_path / "out", "--config", tmp_path / "rules.yaml", "--json"]
    assert main([str(word) for word in command]) == 0
    manifest = json.loads(capsys.readouterr().out)
    rows = read(tmp_path / "scores")
    order = sorted((row["score"] for row in rows), reverse=True)
    lowest = order[len(rows) // 2 - 1]
    expected = {
        (row["key"], row["text"]) for row in rows if row["score"] >= lowest
    }
    kept = pq.read_table(tmp_path / "out" / "kept").to_pylist()
    assert {(row["url"], row["text"]) for row in kept} == expected
    assert min(row["score"] for row in kept) == lowest
    assert manifest["rows"] == manifest["kept"] + manifest["dropped"]
    command = ["curate", "--output", tmp_path / "out", "--explain"]
    assert main([*map(str, command), str(kept[0]["row_id"])]) == 0
    assert "(score 0." in capsys.readouterr().out.replace("-", "")
    broken = len(good)
    (found,) = explain(tmp_path / "out", broken)
    assert found["score"] is None
    assert "it has no score" in found["rules"][-1]["why"]


def test_refusals(pairs, library, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="block_size=1"):
        score(pairs[0], output, library.preset, block_size=1)
    with pytest.raises(ValueError, match="`image_column` can be used only"):
        score(library.images, output, library.preset, image_column="x")
    with pytest.raises(FileNotFoundError, match="no model directory"):
        score(pairs[0], output, "nowhere")
    assert not output.exists()
    # A directory of vectors is not one of scores, and the other way round.
    with pytest.raises(ValueError, match="holds scores with"):
        score(pairs[0], library.vectors, library.preset)
