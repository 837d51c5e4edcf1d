"""JSON of the library's own, of another shape than it is written in."""

import copy
import json
from types import SimpleNamespace

import hostile
import pytest

from align_keras.curation.curate import _finished as _curated
from align_keras.curation.execute import _read_part
from align_keras.curation.explain import read_manifest
from align_keras.curation.ingest import IngestTask
from align_keras.curation.stages import read_notes
from align_keras.curation.storage import Storage
from align_keras.data import open_records
from align_keras.data.captions import caption_tables
from align_keras.data.packing import _finished
from align_keras.data.parts import commit_parts
from align_keras.evaluation import compare_results
from align_keras.evaluation.cxc_data import read_sentences
from align_keras.evaluation.diagnosis import _batch_of_run
from align_keras.evaluation.vtab import _best_trial
from align_keras.interop.huggingface_processor import read_image_converter
from align_keras.interop.huggingface_processor import read_tokenizer
from align_keras.interop.safetensors_file import shard_of_each_tensor
from align_keras.interop.tensorflow_checkpoint import find_prefix
from align_keras.io.file_names import glob_visible
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.json_files import is_count
from align_keras.io.json_files import is_number
from align_keras.io.json_files import read_object
from align_keras.models.presets import load_config
from align_keras.models.presets import write_checksums
from align_keras.planning import plan_store
from align_keras.training.inputs import count_once
from align_keras.training.known_towers import KnownTower
from align_keras.training.trackers import _keep_run

MISSING = hostile.MISSING
ALONE = SimpleNamespace(sums=lambda *values: [*values])
RECORDS = SimpleNamespace(paths=["a.tfrecord"], source="packed")
PACKED = {
    **dict.fromkeys(("records", "captions", "skipped_count", "images"), 1),
    "held_out": 0,
    "order": "random",
    "skipped": [],
    "skipped_reasons": {"no caption": 1},
    "shards": [{"file": "a.tfrecord", "records": 1}],
    "arguments": {"source": "photos"},
}
PLAN = {
    **dict.fromkeys(("cores", "batch_size", "batch_per_core"), 1),
    "recipe": {},
    "memory": {"total": 1, "capacity": 2},
    "seconds": {"step": 0.5},
    "schedule": {},
}


CURATED = {
    **dict.fromkeys(("rows", "kept", "dropped"), 1),
    **dict.fromkeys(("key", "stages", "rows_stage"), "a"),
    "files": {"dropped": ["dropped/a.parquet"]},
    "rules": [{"name": "a", "kind": "empty", "parameters": {}}],
    "tables": {"a": "b"},
    "config": {"counted_rows": "all"},
}


def _ingest(path):
    task = IngestTask(0, str(path.parent / "none.csv"), {})
    _read_part(str(path.parent.parent), path.parent.name, task)


def _batch(path):
    (path.parent / "model").mkdir()
    assert _batch_of_run(str(path.parent / "model")) == 8


def _pooling(path):
    (path.parents[1] / "config.json").write_text('{"model_type": "bert"}')
    KnownTower(str(path.parents[1]), "text").pooling()


def _checksums(path):
    (path.parent / "config.json").write_text("{}")
    write_checksums(path.parent)


def _trial(path):
    sweep = SimpleNamespace(trials=1, draw=lambda seed, trial: None)
    _best_trial(None, None, sweep, path.parent, 0, False, None)


# For each file: who reads it, what it may hold, and what it may not.
FILES = {
    "records.json": (
        lambda path: count_once(RECORDS, path.parent, 1, ALONE),
        [["a.tfrecord", 1]],
        [((), 3), ((), {}), ((0,), 3), ((0,), ["a"]), ((0, 1), "1")],
    ),
    "manifest.json": (
        lambda path: _finished(path.parent, PACKED["arguments"]),
        PACKED,
        [
            *[((), []), (("shards",), 3), (("shards",), [3])],
            *[((name,), MISSING) for name in PACKED],
            *[(("shards", 0, "file"), 3), (("arguments",), [])],
        ],
    ),
    "part-00001-of-00001/manifest.json": (
        lambda path: commit_parts(path.parent.parent, 1),
        PACKED,
        [
            *[((), 3), (("arguments",), 3), (("arguments", "source"), MISSING)],
            *[(("skipped_reasons",), []), (("records",), "1")],
            (("skipped_reasons", "no caption"), None),
        ],
    ),
    "dataset_coco.json": (
        lambda path: read_sentences(path, []),
        {"images": [{"sentences": [{"sentid": 1, "raw": "a"}]}]},
        [
            *[((), []), ((), 3), (("images",), 3), (("images",), [3])],
            *[(("images", 0, "sentences"), value) for value in (MISSING, 3)],
            *[(("images", 0, "sentences", 0, "raw"), v) for v in (3, [])],
        ],
    ),
    "trial-0.json": (
        _trial,
        {"top1": 0.5},
        [((), []), *[(("top1",), value) for value in (MISSING, "1", None)]],
    ),
    "trackers.json": (
        lambda path: _keep_run(path.parent, "wandb", "b"),
        {"wandb": "a"},
        [((), []), ((), 3), (("wandb",), 3)],
    ),
    "model.safetensors.index.json": (
        shard_of_each_tensor,
        {"weight_map": {"a": "model-1.safetensors"}},
        [
            *[((), []), *[(("weight_map",), v) for v in (MISSING, [], "a")]],
            *[(("weight_map", "a"), value) for value in (3, [], None)],
        ],
    ),
    "preprocessor_config.json": (
        lambda path: read_image_converter(path.parent),
        {"resample": 2, "image_mean": [0.5, 0.5, 0.5]},
        [((), []), (("image_processor_type",), 3), (("image_mean",), "a")],
    ),
    "processor_config.json": (
        lambda path: read_image_converter(path.parent),
        {"image_processor": {"resample": 2}},
        [((), []), *[(("image_processor",), v) for v in ([], 3, None)]],
    ),
    "tokenizer.json": (
        lambda path: read_tokenizer(path.parent),
        None,
        [((), []), ((), 3), ((), {"added_tokens": [3]})],
    ),
    "result.json": (
        lambda path: compare_results(path, path),
        None,
        [
            *[((), value) for value in ([], 3, {}, {"task": []})],
            *[((), {"task": "knn", name: 3}) for name in ("intervals", "ks")],
            *[((), {"task": "knn", name: [3]}) for name in ("model", "tasks")],
            ((), {"task": "knn", "intervals": {"top1": []}, "top1": "1"}),
            ((), {"task": "knn", "intervals": {"top1": []}, "top1": [1]}),
        ],
    ),
    "curated/manifest.json": (
        lambda path: _curated(Storage(path.parent), "a"),
        CURATED,
        [((), []), *[((n,), MISSING) for n in ("key", "rows", "kept")]],
    ),
    "explained/manifest.json": (
        lambda path: read_manifest(Storage(path.parent)),
        CURATED,
        [
            *[((), []), (("rules",), 3), (("rules", 0, "kind"), MISSING)],
            *[((n,), MISSING) for n in ("files", "tables", "stages", "config")],
            *[(("files", "dropped"), "a"), (("tables", "a"), 3)],
        ],
    ),
    "stage.json": (
        lambda path: read_notes(Storage(path.parent), "stage"),
        {"directory": "stage", "files": ["a"], "rows": 1},
        [
            *[((), []), (("directory",), "../a"), (("files",), MISSING)],
            *[(("files",), [3]), (("rows",), "1")],
        ],
    ),
    "rows/.part-000000.stage.json": (
        _ingest,
        {"counts": {"rows": 1}, "columns": ["url"]},
        [((), []), ((), {}), (("counts", "rows"), "1"), (("columns",), 3)],
    ),
    "1_Pooling/config.json": (
        _pooling,
        {"pooling_mode_mean_tokens": True},
        [((), []), ((), 3)],
    ),
    "checksums.json": (
        _checksums,
        {"a.weights.h5": "0"},
        [((), []), ((), 3), (("a.weights.h5",), None)],
    ),
    "config.json": (
        lambda path: load_config(str(path.parent)),
        {"class_name": "AlignDualEncoder", "config": {}},
        [((), []), (("config",), 3), (("class_name",), [])],
    ),
    "recipe.json": (
        _batch,
        {"batch_size": 8},
        [((), []), (("batch_size",), "8")],
    ),
    "tokenizer_config.json": (
        lambda path: read_tokenizer(path.parent),
        None,
        [
            *[((), {"do_lower_case": value}) for value in ("false", None)],
            ((), {"strip_accents": "no"}),
            ((), {"tokenize_chinese_chars": "yes"}),
        ],
    ),
    "plan.json": (
        plan_store._read,
        PLAN,
        [
            *[((), []), *[((name,), MISSING) for name in PLAN]],
            *[(("seconds", "step"), "1"), ((), {"needed": 3})],
        ],
    ),
}
CASES = [(name, *change) for name in FILES for change in FILES[name][2]]


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read(tmp_path, name):
    read, held, _ = FILES[name]
    if held is not None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(held))
        (tmp_path / "a.tfrecord").touch()
        read(path)


@pytest.mark.parametrize("name, place, value", CASES)
def test_json_of_another_shape_is_refused_by_name(tmp_path, name, place, value):
    read, held, _ = FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    held = hostile.change_manifest(copy.deepcopy(held), place, value)
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match="is n") as error:
        read(path)
    assert f"`{path}` is no" in str(error.value)


@pytest.mark.parametrize(
    "held, told",
    [
        ([1], r"it holds \[1\]"),
        ({"a": []}, r"it has a=\[\]"),
        ({"a": [{"n": True}]}, r"it has a\[0\].n=True"),
        ({"a": [{"n": 1}, {}]}, r"it has a\[1\].n=None"),
        ({"a": [{"n": 1}], "b": None}, "it has b=None"),
    ],
)
def test_the_field_that_does_not_fit_is_named(tmp_path, held, told):
    path = tmp_path / "a.json"
    form = {"a": [{"n": is_count}, ...], "b?": is_number}
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=f"is not a valid list: {told}. Go."):
        read_object(path, form, "list", "Go.")
    path.write_text('{"a": [{"n": 0, "m": 1}], "c": null}')
    assert read_object(path, form, "list", "Go.")["c"] is None


@pytest.mark.parametrize(
    "manifest", [[], {"shards": [3]}, {"shards": 3}, {"arguments": []}]
)
def test_records_beside_an_unfit_manifest_are_counted(tmp_path, manifest):
    (tmp_path / "a.tfrecord").touch()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    records = open_records(tmp_path)
    assert records.total == 0 and records.resized() == {}


def test_hidden_files_match_no_pattern(tmp_path):
    for place in ("a", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / place).mkdir()
        for name in ("a.index", "._a.index", ".DS_Store"):
            (tmp_path / place / name).touch()
    found = glob_visible(tmp_path / "a", "*.index")
    assert found == [tmp_path / "a" / "a.index"]
    assert glob_visible(tmp_path, "**/*") == [tmp_path / "a", *found]
    assert find_prefix(tmp_path / "a") == str(tmp_path / "a" / "a")
    before = directory_fingerprint(tmp_path)
    (tmp_path / "a" / ".DS_Store").write_text("changed")
    assert directory_fingerprint(tmp_path) == before


def test_hidden_files_are_no_kept_rows(tmp_path):
    for folder in ("kept", "dropped"):
        (tmp_path / folder).mkdir()
    (tmp_path / "manifest.json").touch()
    for name in ("a.parquet", ".h.parquet", "._a.parquet"):
        (tmp_path / "kept" / name).touch()
    assert caption_tables(tmp_path) == [tmp_path / "kept" / "a.parquet"]
