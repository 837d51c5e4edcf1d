"""A plan beside a run."""

import dataclasses
import json

import pytest

from align_keras.training import Recipe
from align_keras.training import load_recipe
from align_keras.training.plan_comparison import FIELDS
from align_keras.training.plan_comparison import FREE
from align_keras.training.plan_comparison import compare_with_plan
from align_keras.training.plan_comparison import describe_step_time
from align_keras.training.plan_comparison import load_plan

RECIPE = load_recipe("small", batch_size=32)


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.json"
    plan = {
        "preset": "align_b0_bert_mini",
        "recipe": dataclasses.asdict(RECIPE),
        "seconds": {"step": 0.25},
        "topology": "v5e:2x2",
        "shard_state": False,
        "vocabulary_size": 30,
    }
    path.write_text(json.dumps(plan))
    return path


def write_metrics(workdir, speeds):
    lines = [{"step": i, "images_per_second": s} for i, s in enumerate(speeds)]
    lines.append({"step": 9, "validation_mean_recall": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)


def test_median_without_the_first_report(tmp_path, plan_file):
    plan = load_plan(plan_file, "align_b0_bert_mini", RECIPE)
    write_metrics(tmp_path, [1.0, 64.0, 32.0, 128.0])
    found = compare_with_plan(plan, tmp_path)
    assert found == {
        "topology": "v5e:2x2",
        "measured": 0.5,
        "planned": 0.25,
        "ratio": 2.0,
    }
    assert "0.5000 s" in describe_step_time(found)
    assert "2.00 times" in describe_step_time(found)
    assert "v5e:2x2" in describe_step_time(found)
    write_metrics(tmp_path, [1.0])
    assert compare_with_plan(plan, tmp_path) is None
    assert "too short" in describe_step_time(None)


def test_every_field_is_compared_or_free():
    """A new one is compared."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert FREE < fields and set(FIELDS) == fields - FREE
    assert {"loss", "ema", "skip_nonfinite", "batch_size"} < set(FIELDS)


@pytest.mark.parametrize(("tokens", "said"), [(30, 0), (20, 1)])
def test_vocabulary_of_another_size_is_told(
    tokens, said, tmp_path, plan_file, caplog
):
    plan = load_plan(plan_file, "align_b0_bert_mini", RECIPE)
    write_metrics(tmp_path, [1.0, 64.0])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [f"word{number}" for number in range(tokens - len(special))]
    text = "\n".join([*special, *words]) + "\n"
    (tmp_path / "vocabulary.txt").write_text(text)
    compare_with_plan(plan, tmp_path)
    assert len(caplog.messages) == said
    assert "--vocabulary-size 20" in caplog.text or not said


@pytest.mark.parametrize("field", FIELDS)
def test_plan_of_another_run_is_refused(field, plan_file):
    plan = json.loads(plan_file.read_text())
    plan["recipe"][field] = "other"
    plan_file.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=f"{field}='other'"):
        load_plan(plan_file, "align_b0_bert_mini", RECIPE)


def test_plan_of_a_state_in_parts_is_for_such_a_run(plan_file):
    plan = json.loads(plan_file.read_text())
    plan["shard_state"] = True
    plan_file.write_text(json.dumps(plan))
    assert load_plan(plan_file, "align_b0_bert_mini", RECIPE, True) == plan
    with pytest.raises(ValueError, match="has shard_state=True, and this run"):
        load_plan(plan_file, "align_b0_bert_mini", RECIPE)


def test_what_is_no_plan_is_refused(tmp_path, plan_file):
    with pytest.raises(ValueError, match="preset='align_b0_bert_mini'"):
        load_plan(plan_file, "align_b1_bert_mini", RECIPE)
    plan_file.write_text('{"preset": ')
    with pytest.raises(ValueError, match="is not a plan. Write one"):
        load_plan(plan_file, "align_b0_bert_mini", RECIPE)
    plan_file.write_text("[1]")
    with pytest.raises(ValueError, match="is not a plan. Write one"):
        load_plan(plan_file, "align_b0_bert_mini", RECIPE)
