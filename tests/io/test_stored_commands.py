"""Every command reads from a store and writes to one as it does on a disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from colors import write_images
from stores import new_address
from stores import s3_server
from tiny_align import VOCABULARY
from tiny_align import tiny_align

from align_keras.cli import main
from align_keras.data import open_records
from align_keras.embedding import embed
from align_keras.io.atomic import atomic_file
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import Store

RULES = "rules: [{token_count: {at_least: 2, at_most: 20}}]\n"


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server():
        yield


@pytest.fixture(scope="module")
def inputs(server, tmp_path_factory):
    """The same inputs on this machine and in a store."""
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "photos")
    tiny_align().save_to_preset(str(folder / "preset"))
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    (folder / "rules.yaml").write_text(RULES)
    (folder / "tables").mkdir()
    for name in "ab":
        rows = [f"http://{name}/{n}.jpg,text {n}" for n in range(5)]
        rows.append(f"http://{name}/short.jpg,one")
        table = folder / "tables" / f"{name}.csv"
        table.write_text("\n".join(["url,text", *rows]))
    address = new_address("s3")
    store = Store(address)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path, path.relative_to(folder).as_posix())
    return folder, address


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    # Nobody has made a directory of an address.
    assert not list(tmp_path.glob("s3*"))


@pytest.fixture
def both(inputs, tmp_path, capsys):
    """Run a command here and there, and return where the results are."""
    local, stored = inputs
    outputs = str(tmp_path / "out"), new_address("s3")

    def run(command):
        said = []
        for root, out in zip((local, stored), outputs, strict=True):
            words = [word.format(root=root, out=out) for word in command]
            assert main(words) == 0, capsys.readouterr().err
            said.append(capsys.readouterr().out)
            assert "/tmp/align_keras-" not in said[-1]
        return said, outputs

    return run


def names(folder):
    folder = Path(local_copy(folder))
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_pack(both):
    _, (here, there) = both(["pack", "{root}/photos", "--output", "{out}"])
    assert list(open_records(here)) == list(open_records(there))
    assert names(here) == names(there)
    manifests = [
        json.loads((Path(local_copy(o)) / "manifest.json").read_text())
        for o in (here, there)
    ]
    sources = [m["arguments"].pop("source") for m in manifests]
    assert sources[1].startswith("s3://") and manifests[0]["records"]
    # Packing again does nothing.
    both(["pack", "{root}/photos", "--output", "{out}"])
    before = Store(there).read_with_tag("manifest.json")
    assert before == Store(there).read_with_tag("manifest.json")


def test_embed_index_and_search(both):
    model = ["--model", "{root}/preset"]
    both(["embed", "{root}/photos", *model, "--output", "{out}/vectors"])
    index = ["index", "{out}/vectors", *model, "--output", "{out}/index"]
    both([*index, "--labels", "{root}/classes.txt"])
    (here, there), _ = both(
        ["search", "{out}/index", "--text", "red bus", "--json"]
    )
    assert json.loads(here) == json.loads(there)
    _, outputs = both(
        ["search", "{out}/index", "--text", "a", "--contact-sheet"]
        + ["{out}/sheet.png"]
    )
    here, there = (Path(local_copy(f"{out}/sheet.png")) for out in outputs)
    assert here.read_bytes() == there.read_bytes()


def test_vectors_of_a_store_are_gone_on_with_on_another_machine(
    inputs, tmp_path, monkeypatch
):
    there = new_address("s3")
    found = []
    for machine in ("one", "two"):
        monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / machine))
        found.append(embed(f"{inputs[1]}/photos", there, f"{inputs[1]}/preset"))
    assert found[0] == found[1] and found[0]["records"]


def test_executors_write_to_no_store(inputs):
    with pytest.raises(ValueError, match="only local paths"):
        embed(
            f"{inputs[1]}/photos",
            new_address("s3"),
            f"{inputs[1]}/preset",
            run_tasks=print,
        )


def test_vocab(both):
    _, outputs = both(
        ["vocab", "{root}/tables/a.csv", "--output", "{out}/words.txt"]
        + ["--size", "60", "--text-column", "text"]
    )
    here, there = (
        Path(local_copy(f"{out}/words.txt")).read_text() for out in outputs
    )
    assert here == there and "text" in here


def test_evaluate(both):
    (here, there), outputs = both(
        ["evaluate", "retrieval", "--model", "{root}/preset", "--data"]
        + ["{root}/photos", "--captions", "{root}/photos/captions.csv"]
        + ["--output", "{out}/result.json", "--json"]
    )
    metrics = json.loads(here), json.loads(there)
    assert metrics[0]["mean_recall"] == metrics[1]["mean_recall"]
    for out in outputs:
        assert {"result.json", "result.npz"} <= names(out)


def test_diagnose(both):
    (here, there), outputs = both(
        ["diagnose", "--model", "{root}/preset", "--data", "{root}/photos"]
        + ["--captions", "{root}/photos/captions.csv"]
        + ["--output", "{out}", "--json"]
    )
    numbers = json.loads(here), json.loads(there)
    assert numbers[0]["alignment"] == numbers[1]["alignment"]
    assert numbers[0]["wrong_texts"] == numbers[1]["wrong_texts"]
    for out, expected in zip(outputs, numbers, strict=True):
        assert {"diagnosis.json", "index.html"} <= names(out)
        written = Path(local_copy(out), "diagnosis.json").read_text()
        assert json.loads(written) == expected


@pytest.mark.thorough
def test_export_and_convert(both):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    _, outputs = both(
        ["export", "--model", "{root}/preset", "--output", "{out}/saved"]
        + ["--classes", "{root}/classes.txt"]
    )
    found = [
        tf.saved_model.load(str(local_copy(f"{out}/saved")))
        .signatures["encode_text"](texts=tf.constant(["a red bus"]))[
            "embeddings"
        ]
        .numpy()
        for out in outputs
    ]
    np.testing.assert_array_equal(*found)
    _, outputs = both(
        ["convert", "{root}/preset", "{out}/theirs", "--to", "huggingface"]
    )
    here, there = (names(f"{out}/theirs") for out in outputs)
    assert here == there and "model.safetensors" in here


def test_curate(both):
    _, outputs = both(
        ["curate", "{root}/tables/*.csv", "--config", "{root}/rules.yaml"]
        + ["--output", "{out}"]
    )
    kept = []
    for out in outputs:
        import pyarrow.parquet as pq

        table = pq.read_table(Path(local_copy(out)) / "kept")
        kept.append(sorted(table["url"].to_pylist()))
    assert kept[0] == kept[1] and len(kept[0]) == 10
    from align_keras.curation import explain

    here, there = (explain(out, 5) for out in outputs)
    assert here == there
    assert [rule["name"] for rule in here[0]["rules"]] == ["token_count"]


@pytest.mark.thorough
def test_curate_on_spark_of_this_machine(both):
    _, outputs = both(
        ["curate", "{root}/tables/*.csv", "--config", "{root}/rules.yaml"]
        + ["--output", "{out}", "--engine", "spark", "--master", "local[2]"]
    )
    import pyarrow.parquet as pq

    here, there = (
        pq.read_table(Path(local_copy(out)) / "kept").sort_by("url")
        for out in outputs
    )
    assert here.equals(there) and len(here) == 10


def test_presets_and_tokenizers_are_saved_and_opened(inputs):
    from align_keras import AlignDualEncoder
    from align_keras import AlignTokenizer

    model = AlignDualEncoder.from_preset(f"{inputs[1]}/preset")
    there = new_address("s3")
    model.save_to_preset(there)
    again = AlignDualEncoder.from_preset(there)
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    tokenizer = AlignTokenizer.from_preset(there)
    assert tokenizer.get_vocabulary() == VOCABULARY
    tower = new_address("s3")
    model.text_encoder.save_to_preset(tower)
    assert "model.weights.h5" in names(tower)
    path = f"{new_address('s3')}/words.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(VOCABULARY) + "\n")
    assert AlignTokenizer(path).get_vocabulary() == VOCABULARY
    tokens = new_address("s3")
    tokenizer.save_to_preset(tokens)
    assert AlignTokenizer.from_preset(tokens).get_vocabulary() == VOCABULARY
