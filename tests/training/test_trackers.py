"""Callbacks of the caller, and where the metrics go."""

import json

import keras
import pytest
from colors import write_training_inputs

from align_keras.cli import main
from align_keras.training import train
from align_keras.training.callbacks import read_metrics

STEPS = 6


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    write_training_inputs(folder)
    return folder


def run(inputs, workdir, **changes):
    options = {
        "validation_data": str(inputs / "packed"),
        "vocabulary": inputs / "words.txt",
        "strategy": "one-device",
        "verbose": False,
        "steps": STEPS,
        "batch_size": 4,
        "checkpoint_every": 3,
        "log": (),
        **changes,
    }
    return train(
        str(inputs / "preset"),
        str(inputs / "recipe.yaml"),
        str(inputs / "packed"),
        workdir,
        **options,
    )


class Seen(keras.callbacks.Callback):
    """Remembers, and ends the run after some steps."""

    def __init__(self, end=None):
        super().__init__()
        self.losses, self.end = [], end

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        if len(self.losses) == self.end:
            self.model.stop_training = True


def losses(workdir):
    return [row["loss"] for _, row in read_metrics(workdir) if "loss" in row]


def test_callbacks_see_every_step_and_change_none(inputs, tmp_path):
    seen = Seen()
    result = run(inputs, tmp_path / "seen", callbacks=[seen])
    plain = run(inputs, tmp_path / "plain")
    assert result["step"] == plain["step"] == STEPS
    assert len(seen.losses) == STEPS
    assert losses(tmp_path / "seen") == losses(tmp_path / "plain")


@pytest.mark.thorough
def test_a_callback_that_ends_the_run_saves_it(inputs, tmp_path):
    first = run(inputs, tmp_path / "run", callbacks=[Seen(end=2)])
    assert first["step"] == 2
    assert not first["stopped_early"]
    # It was measured, too, and the same call goes on to the same end.
    assert first["best"]["step"] == 2
    seen = Seen()
    assert run(inputs, tmp_path / "run", callbacks=[seen])["step"] == STEPS
    assert len(seen.losses) == STEPS - 2
    run(inputs, tmp_path / "plain")
    assert losses(tmp_path / "run")[-1] == losses(tmp_path / "plain")[-1]


def test_names_that_are_none_are_refused(inputs, tmp_path, capsys):
    for log in ("wandb", ["tensorbord"]):
        with pytest.raises(ValueError, match="`log` must be a list of names"):
            run(inputs, tmp_path / "run", log=log)
    assert not (tmp_path / "run").exists()
    words = "--preset align_b0_bert_tiny --recipe small --data / --workdir c "
    words += "--log none"
    assert main(["train", *words.split(), "--log", "wandb"]) == 2
    assert "cannot be combined with other `--log`s" in capsys.readouterr().err


def test_tensorboard_is_left_out_where_it_is_not_asked_for(inputs, tmp_path):
    run(inputs, tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_mlflow_has_what_the_file_has(inputs, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="It is the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "colors")
    workdir = tmp_path / "run"
    run(inputs, workdir, log=["mlflow"], callbacks=[Seen(end=3)])
    run(inputs, workdir, log=["mlflow"])
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("colors").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert found.data.params["steps"] == str(STEPS)
    assert json.loads((workdir / "trackers.json").read_text()) == {
        "mlflow": found.info.run_id
    }
    expected = {}
    for _, row in read_metrics(workdir):
        step = row.pop("step")
        for name, value in row.items():
            name = name.replace("@", "_at_")
            expected.setdefault(name, {})[step] = value
    assert any("_at_1" in name for name in expected)
    for name, values in expected.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert {entry.step: entry.value for entry in history} == values


class Fails(keras.callbacks.Callback):
    """Ends a run before its first checkpoint."""

    def on_train_batch_end(self, batch, logs=None):
        raise InterruptedError


def test_a_run_that_begins_anew_is_a_new_one(inputs, tmp_path, monkeypatch):
    """Its settings may have changed, and its steps are taken again."""
    mlflow = pytest.importorskip("mlflow", reason="It is the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    workdir = tmp_path / "run"
    with pytest.raises(InterruptedError):
        run(inputs, workdir, log=["mlflow"], callbacks=[Fails()])
    run(inputs, workdir, log=["mlflow"], batch_size=2)
    found = mlflow.MlflowClient().search_runs(["0"])
    assert {(r.info.status, r.data.params["batch_size"]) for r in found} == {
        ("FAILED", "4"),
        ("FINISHED", "2"),
    }


def wandb_records(path):
    """Read a `.wandb` file: LevelDB's log format behind a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    contents, at, record = path.read_bytes(), 7, b""
    while at < len(contents):
        left = 32768 - at % 32768
        if left < 7:
            at += left  # No head of a record begins there.
            continue
        size = int.from_bytes(contents[at + 4 : at + 6], "little")
        kind = contents[at + 6]  # Whole, first, middle or last part.
        record += contents[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_wandb_has_what_the_file_has(inputs, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="It is the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "run"
    run(inputs, workdir, log=["wandb"])
    (path,) = workdir.glob("wandb/offline-run-*/*.wandb")
    rows, config = [], {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {
                    i.key or ".".join(i.nested_key): json.loads(i.value_json)
                    for i in items
                }
            )
        for update in record.run.config.update:
            config[update.key] = json.loads(update.value_json)
    assert config["steps"] == STEPS
    expected = [row for _, row in read_metrics(workdir)]
    assert len(rows) == len(expected) > 2
    for found, row in zip(rows, expected, strict=True):
        assert {name: found[name] for name in row} == row
