import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from qdrant_server import Collections
from qdrant_server import qdrant_server
from tiny_align import tiny_align

from align_keras.cli import main
from align_keras.search import Index
from align_keras.search import build_index
from align_keras.search import index_writer
from align_keras.search import search
from align_keras.search import write_index
from align_keras.search.qdrant import upload


@pytest.fixture(scope="module")
def vectors(library, dual_encoder):
    paths = [str(library.images / name) for name in library.names]
    return np.asarray(dual_encoder.encode_image(paths))


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    "words, photo, minus, weights",
    [
        ("a red bus", None, None, {}),
        (None, "04.jpg", None, {}),
        ("blue", "04.jpg", None, {}),
        (None, "04.jpg", "the dog", {"minus_weight": 0.7}),
        ("blue", "04.jpg", "red", {"text_weight": 0.5, "image_weight": 3.0}),
    ],
)
def test_search_ranks_as_numpy_does(
    library, model, dual_encoder, vectors, words, photo, minus, weights
):
    def text(value):
        return np.asarray(dual_encoder.encode_text([value]))[0]

    plus = weights.get("text_weight", 2.0)
    query = np.zeros(vectors.shape[1])
    if words:
        query = query + plus * text(words)
    if photo:
        path = library.images / photo
        image = np.asarray(dual_encoder.encode_image([str(path)]))[0]
        query = query + weights.get("image_weight", 1.0) * image
    if minus:
        query = query - weights.get("minus_weight", plus) * text(minus)
    expected = vectors @ unit(query)
    results = search(
        library.index,
        text=words,
        image=photo and library.images / photo,
        minus_text=minus,
        k=7,
        model=model,
        **weights,
    )
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, np.sort(expected)[::-1][:7], atol=1e-4)
    for result in results:
        assert result["key"] == library.names[result["row"]]
        assert result["score"] == pytest.approx(
            expected[result["row"]], abs=1e-4
        )


def test_command_line(library, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("a bus\n\na dog\n")
    (tmp_path / "templates.json").write_text('["a drawing of {}", "{}"]')
    index = tmp_path / "index"
    command = ["index", library.vectors, "--model", library.preset]
    command += ["--output", index, "--labels", tmp_path / "labels.txt"]
    command += ["--templates", tmp_path / "templates.json", "--json"]
    assert main([str(word) for word in command]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 30
    opened = Index(index)
    assert opened.labels == ["a bus", "a dog"]
    assert opened.templates == ["a drawing of {}", "{}"]
    alone = [*command[:4], "--output", tmp_path / "other", *command[8:]]
    assert main(list(map(str, alone))) == 2
    assert "name a file with --labels too" in capsys.readouterr().err
    (tmp_path / "templates.json").write_text('["a drawing"]')
    assert main([str(word) for word in command]) == 2
    assert "must hold `{}` once" in capsys.readouterr().err

    sheet = tmp_path / "sheet.png"
    command = ["search", index, "--image", library.images / "06.jpg"]
    command += ["-k", "3", "--json", "--contact-sheet", sheet]
    assert main([str(word) for word in command]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results[0]["key"] == "06.jpg"
    assert results[0]["score"] == pytest.approx(1, abs=1e-4)
    assert len(results) == 3
    assert sheet.stat().st_size > 1000


def test_another_model_is_refused(library, tmp_path):
    other = tmp_path / "other"
    tiny_align(seed=1).save_to_preset(str(other))
    with pytest.raises(ValueError, match="does not match"):
        build_index(library.vectors, tmp_path / "index", other)
    assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="does not match"):
        search(library.index, text="a bus", model=other)
    copy = tmp_path / "copy"
    shutil.copytree(library.index, copy)
    weights = copy / "model" / "model.weights.h5"
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    with pytest.raises(ValueError, match="does not match"):
        Index(copy).load_model()


def test_damaged_and_newer_indexes_are_refused(library, tmp_path):
    def damaged(name, change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(
            library.index, copy, ignore=shutil.ignore_patterns("model")
        )
        path = copy / name
        path.write_bytes(change(path.read_bytes()))
        return copy

    newer = damaged(
        "index.json", lambda b: b.replace(b'"version": 1', b'"version": 2')
    )
    with pytest.raises(ValueError, match="version 2.*reads version 1"):
        Index(newer)
    with pytest.raises(ValueError, match="not valid JSON"):
        Index(damaged("index.json", lambda contents: contents[:20]))
    with pytest.raises(ValueError, match="keys.bin. does not hold the 30 rows"):
        Index(damaged("keys.bin", lambda contents: contents[:-1]))
    with pytest.raises(ValueError, match="damaged"):
        Index(damaged("keys.npy", lambda contents: b"no array"))
    for name in ("keys.bin", "texts.npy", "vectors.npy"):
        copy = damaged(name, lambda contents: contents)
        (copy / name).unlink()
        with pytest.raises(ValueError, match="Build the index again"):
            Index(copy)
    with pytest.raises(FileNotFoundError, match="no index.json"):
        Index(tmp_path)


def test_unfinished_vectors_and_existing_outputs(library, tmp_path):
    copy = tmp_path / "vectors"
    shutil.copytree(library.vectors, copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match="not complete"):
        build_index(copy, tmp_path / "index", library.preset)
    # Such as `pack` writes it.
    (copy / "manifest.json").write_text('{"arguments": {"source": "a"}}')
    with pytest.raises(
        ValueError, match="json` is not a valid manifest of vectors"
    ):
        build_index(copy, tmp_path / "index", library.preset)
    with pytest.raises(FileExistsError, match="exists already"):
        build_index(library.vectors, library.index, library.preset)


def test_too_few_vectors_for_a_kind_are_refused(library, tmp_path):
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(256, 8))

    def write(kind, count):
        rows = [([""] * count, [""] * count, vectors[:count], [b""] * count)]
        path = tmp_path / f"{kind}_{count}"
        write_index(rows, count, path, library.preset, kind)
        return Index(path)

    with pytest.raises(ValueError, match="at least 256.*exact.*255 vectors"):
        write("ivf-pq", 255)
    assert not list(tmp_path.iterdir())
    for kind, fewest in (("ivf-pq", 256), ("hnsw", 1), ("exact", 1)):
        ((rows, _),) = write(kind, fewest).search(vectors[:1], 1)
        assert rows.tolist() == [0]


# === Other searchers ===

COUNT, DIM = 3000, 32


@pytest.fixture(scope="module")
def drawn():
    """Vectors around centres, and queries of the same kind."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, DIM))
    every = centres[rng.integers(0, 60, COUNT + 20)]
    every = every + 0.3 * rng.normal(size=every.shape)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    every = every.astype("float32")
    return every[:COUNT], every[COUNT:]


@pytest.mark.parametrize("kind", ["ivf-pq", "hnsw", "qdrant"])
def test_other_searchers_find_what_the_exact_one_finds(
    library, drawn, tmp_path, kind
):
    package = "qdrant_client" if kind == "qdrant" else "faiss"
    pytest.importorskip(package)
    if kind != "qdrant":
        import faiss

        faiss.omp_set_num_threads(2)
    vectors, queries = drawn
    if kind == "qdrant":
        # Embedded, it writes each point to the disk by itself.
        vectors = vectors[:400]
    count = len(vectors)
    names = [f"../../{row}" for row in range(count)]
    rows = [(names, [""] * count, vectors, [b""] * count)]
    write_index(rows, count, tmp_path / "index", library.preset, kind)
    index = Index(tmp_path / "index")
    found = index.search(queries, 10)
    index.close()
    if kind != "qdrant":
        about = json.loads((tmp_path / "index" / "index.json").read_text())
        assert 0.95 <= about["settings"]["recall@10"] <= 1
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    hits = 0
    for query, (where, scores), right in zip(
        queries, found, expected, strict=True
    ):
        # Whatever is found, its score is that of its vector.
        np.testing.assert_allclose(scores, vectors[where] @ query, atol=1e-5)
        hits += len(set(where) & set(right))
    assert hits / expected.size > 0.95
    assert index.key(7) == "../../7"


def test_auto_changes_to_faiss_and_maps_its_files(
    library, drawn, tmp_path, monkeypatch
):
    pytest.importorskip("faiss")
    vectors = drawn[0]
    rows = [([""] * COUNT, [""] * COUNT, vectors, [b""] * COUNT)]
    # Each is kept up to its bound, and the next is taken one above.
    bounds = {
        "exact": (COUNT, COUNT),
        "hnsw": (COUNT - 1, COUNT),
        "ivf-pq": (COUNT - 2, COUNT - 1),
    }
    for kind, (exact, graph) in bounds.items():
        monkeypatch.setattr(index_writer, "EXACT_UP_TO", exact)
        monkeypatch.setattr(index_writer, "GRAPH_UP_TO", graph)
        path = tmp_path / kind
        about = write_index(rows, COUNT, path, library.preset)
        assert about["kind"] == kind
    for kind in ("hnsw", "ivf-pq"):
        path = tmp_path / kind
        index = Index(path)
        assert isinstance(index.vectors, np.memmap)
        found = index.search(vectors[:5], 1)
        assert [rows[0] for rows, _ in found] == list(range(5))
        maps = Path("/proc/self/maps")
        if maps.exists():
            mapped = maps.read_text()
            for name in ("vectors.npy", "index.faiss"):
                assert str(path / name) in mapped


def test_a_collection_of_other_vectors_is_refused(qdrant_index):
    shutil.rmtree(qdrant_index / "qdrant")
    with pytest.raises(ValueError, match="`align_keras` in .* does not exist"):
        Index(qdrant_index)


@pytest.fixture
def qdrant_index(library, drawn, tmp_path):
    """Twenty vectors, embedded."""
    pytest.importorskip("qdrant_client")
    rows = [(["a"] * 20, [""] * 20, drawn[0][:20], [b""] * 20)]
    write_index(rows, 20, tmp_path / "index", library.preset, "qdrant")
    return tmp_path / "index"


def test_embedded_qdrant_takes_one_user(qdrant_index, capsys):
    index = Index(qdrant_index)
    assert main(["search", str(qdrant_index), "--text", "a bus"]) == 2
    assert "is already open" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds its vectors itself"):
        Index(qdrant_index, qdrant="http://localhost:6333")
    index.close()


def test_an_index_does_not_say_where_queries_go(qdrant_index, monkeypatch):
    path = qdrant_index / "index.json"
    about = json.loads(path.read_text())
    about["settings"]["location"] = "http://evil.example:6333"
    path.write_text(json.dumps(about))
    asked = []

    def ask(location, *_):
        asked.append(location)

    monkeypatch.setattr("align_keras.search.qdrant.QdrantSearch", ask)
    with pytest.raises(ValueError, match="evil.example.*name it yourself"):
        Index(qdrant_index)
    with pytest.raises(ValueError, match="`qdrant` must be a URL"):
        Index(qdrant_index, qdrant="localhost:6333")
    Index(qdrant_index, qdrant="http://localhost:6333")
    assert asked == ["http://localhost:6333"]


def test_a_server_that_does_not_answer(library, qdrant_index, tmp_path, capsys):
    path = qdrant_index / "index.json"
    path.write_text(path.read_text().replace(": null", ': "http://qdrant:1"'))
    # Nobody listens on port 1.
    server = ["--qdrant", "http://127.0.0.1:1"]
    build = ["index", library.vectors, "--model", library.preset]
    build += ["--kind", "qdrant", "--output", tmp_path / "other"]
    for command in (build, ["search", qdrant_index, "--text", "a bus"]):
        assert main([str(word) for word in command + server]) == 2
        assert "127.0.0.1:1` does not answer" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("status", [400, 409])
def test_two_that_write_one_collection(status):
    """Both saw that there was none; the server lets one make it."""
    pytest.importorskip("qdrant_client")
    collections, ended = Collections(together=2, status=status), []

    def write(value):
        try:
            vectors = np.full((600, 4), value, "float32")
            upload(vectors, map(str, range(600)), address, "photos")
            ended.append(value)
        except FileExistsError as error:
            assert "`photos` exists" in str(error)

    with qdrant_server(collections) as address:
        writers = [threading.Thread(target=write, args=[n]) for n in (1, 2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    (first,) = ended
    assert len(collections["photos"]) == 600
    assert {x for v in collections["photos"].values() for x in v} == {first}


def test_half_a_collection_is_deleted_again():
    pytest.importorskip("qdrant_client")
    collections = Collections(full=300)
    vectors = np.ones((600, 4), "float32")
    with qdrant_server(collections) as address:
        with pytest.raises(ConnectionError):
            upload(vectors, map(str, range(600)), address, "photos")
        assert not collections
        collections.full = None
        upload(vectors, map(str, range(600)), address, "photos")
        with pytest.raises(FileExistsError):
            upload(vectors[:1], ["0"], address, "photos")
    assert len(collections["photos"]) == 600


@pytest.mark.parametrize("place", ["write_json", "publish"])
def test_a_collection_without_an_index_is_deleted(
    library, tmp_path, monkeypatch, place
):
    pytest.importorskip("qdrant_client")
    collections = Collections()
    rows = [(["a"] * 20, [""] * 20, np.eye(20, 8) + 1, [b""] * 20)]

    def fail(*_):
        assert len(collections["photos"]) == 20
        raise OSError("disk full")

    with qdrant_server(collections) as address:
        arguments = (rows, 20, tmp_path / "index", library.preset, "qdrant")
        where = {"qdrant": address, "collection": "photos"}
        with monkeypatch.context() as patch:
            patch.setattr(index_writer, place, fail)
            with pytest.raises(OSError, match="disk full"):
                write_index(*arguments, **where)
        assert not collections
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        write_index(*arguments, **where)
        # A collection of another index stays.
        with pytest.raises(FileExistsError, match="`photos` exists"):
            write_index(
                rows, 20, tmp_path / "b", library.preset, "qdrant", **where
            )
        assert len(collections["photos"]) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qdrant", "http://a:6333"], "only for the kind qdrant"),
        (["--kind", "exact", "--collection", "a"], "only for the kind qdrant"),
        (["--kind", "qdrant", "--qdrant", "a:6333"], "must be a URL"),
    ],
)
def test_options_of_qdrant(
    library, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    command = ["index", library.vectors, "--model", library.preset]
    command += ["--output", "index", *options]
    assert main([str(word) for word in command]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
