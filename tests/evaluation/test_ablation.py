import json
from pathlib import Path

import keras
import numpy as np
import pytest

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras.cli import main
from align_keras.evaluation import ablation
from align_keras.evaluation.ablation_data import corrupt
from align_keras.evaluation.ablation_plan import read_plan
from align_keras.evaluation.fewer_negatives import FewerNegatives
from align_keras.evaluation.results import Result

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ablation.yaml"
PLAN = """
data: {scenes: 24, evaluation_scenes: 12}
recipe: quickstart
overrides: {steps: 2, batch_size: 8, warmup_steps: 0, checkpoint_every: 2}
encoders:
  image: {small: {width_coefficient: 0.2, depth_coefficient: 0.2}}
  text:
    small:
      {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 32}
base: {image: small, text: small, initial_temperature: 0.1}
runs:
  odd:
    {embedding_dim: 8, temperature: 0.05, negatives: 0.5, noise: 0.5,
     data_share: 0.7}
"""


def unit(rng, *shape):
    rows = rng.normal(size=shape).astype("float32")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numpy(tensors):
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_fewer_negatives(share):
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 9, 4), unit(rng, 9, 4)
    found = numpy(FewerNegatives(share, 0.1).score(images, texts, 0.2))
    if share == 1.0:
        expected = numpy(ContrastiveLoss(0.1).score(images, texts, 0.2))
    else:
        logits = images.astype("float64") @ texts.T / 0.2
        expected = [np.zeros(9), np.zeros(9), np.zeros(9)]
        for place, scores in ((1, logits), (2, logits.T)):
            for row in range(9):
                kept = scores[row, (row + np.arange(5)) % 9]
                target = np.full(5, 0.1 / 5)
                target[0] += 0.9
                log_softmax = kept - np.log(np.exp(kept).sum())
                expected[0][row] -= target @ log_softmax
                expected[place][row] = kept.argmax() == 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_corruption_is_nested():
    captions = {f"{n}.jpg": [f"text {n}"] for n in range(100)}
    half = corrupt(captions, 0.5, 0.2)
    assert len(half) == 50
    wrong = {name for name in half if half[name] != captions[name]}
    assert len(wrong) == 10
    # No caption is lost or doubled.
    assert sorted(sum(half.values(), [])) == sorted(
        sum((captions[name] for name in half), [])
    )
    assert set(corrupt(captions, 0.25, 0.0)) <= set(half)


@pytest.mark.usefixtures("plain_decoder", "eager_steps")
def test_ablation_runs_resumes_and_reports(tmp_path, capsys, monkeypatch):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    command = ["ablate", str(plan), "--workdir", str(tmp_path / "work")]
    command += ["--bootstrap", "20", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["baseline", "odd"]
    odd = found["odd"]
    assert odd["variant"]["negatives"] == 0.5
    assert set(odd["against_baseline"]) == set(ablation.COLUMNS)
    runs = tmp_path / "work" / "runs"
    model = AlignDualEncoder.from_preset(str(runs / "odd/run/model"))
    assert model.embedding_dim == 8
    assert model.temperature == pytest.approx(0.05)
    free = AlignDualEncoder.from_preset(str(runs / "baseline/run/model"))
    assert free.temperature != pytest.approx(0.1, abs=1e-7)
    manifest = json.loads(
        next((tmp_path / "work/data").glob("*0.7*/manifest.json")).read_text()
    )
    assert manifest["records"] == 17
    table = (tmp_path / "work" / "ablation.md").read_text()
    assert "| odd |" in table and "ablation.png" in table
    assert (tmp_path / "work" / "ablation.png").stat().st_size > 5000

    # Nothing is trained twice; the table is written again.
    monkeypatch.setattr(ablation, "train", None)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert Result.load(runs / "odd" / "result.json").outcomes
    # Encoders that no run uses may come and go.
    plan.write_text(PLAN.replace("image: {small", "image: {new: {}, small"))
    assert main(command) == 0
    for old, new, field in (
        ("noise: 0.5", "noise: 0.1", "variant"),
        ("hidden_dim: 16", "hidden_dim: 32", "encoders"),
        ("scenes: 24", "scenes: 25", "scenes"),
    ):
        plan.write_text(PLAN.replace(old, new))
        assert main(command) == 2
        assert f" with {field}=" in capsys.readouterr().err


def test_a_grid_is_crossed_and_plotted(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    ran, metrics = {}, []

    def run(plan, name, variant, *_):
        ran[name] = variant
        found = dict.fromkeys(
            (*ablation.COLUMNS, "mean_recall"), len(ran) / 100
        )
        ends = dict.fromkeys(ablation.COLUMNS, (0.0, 0.5))
        chance = {f"chance_{name}": 0.003 for name in found}
        return Result({**found, **chance, "intervals": ends})

    monkeypatch.setattr(ablation, "_run", run)
    monkeypatch.setattr(ablation, "prepare_data", lambda *_: (None, None))
    monkeypatch.setattr(ablation, "captioned", lambda *_, **__: None)
    monkeypatch.setattr(plt, "close", metrics.append)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN + "grid: {image: [small, b0], text: [small, base]}\n")
    ablation.ablate(plan, tmp_path, samples=0)
    crossed = {
        name: (variant.image, variant.text)
        for name, variant in list(ran.items())[2:]
    }
    assert crossed == {
        "small + small": ("small", "small"),
        "small + base": ("small", "base"),
        "b0 + small": ("b0", "small"),
        "b0 + base": ("b0", "base"),
    }
    # A line for each text encoder over the image encoders, and the others as
    # bars: baseline, odd.
    lines, bars = metrics[0].axes
    drawn = {
        container.get_label(): list(container.lines[0].get_ydata())
        for container in lines.containers
    }
    assert drawn == {
        "small": pytest.approx([3.0, 5.0]),
        "base": pytest.approx([4.0, 6.0]),
    }
    # Chance as a line in both, intervals on the bars, legends above.
    for axes in (lines, bars):
        (chance,) = [
            line for line in axes.get_lines() if line.get_label() == "chance"
        ]
        assert 0.3 in [*chance.get_xdata(), *chance.get_ydata()]
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.get_window_extent().y1 - 1
    reaches = [c.errorbar for c in bars.containers if hasattr(c, "errorbar")]
    assert len(reaches) == 2
    for reach in reaches:
        segments = reach.lines[2][0].get_segments()
        assert [list(s[:, 0]) for s in segments] == [[0.0, 50.0]] * 2
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels == ["baseline", "odd"]
    assert (tmp_path / "ablation.png").stat().st_size > 5000
    assert (
        "| b0 + base | 6.0 [0.0, 50.0] |"
        in (tmp_path / "ablation.md").read_text()
    )


def test_the_documented_plan_is_valid():
    _, variants = read_plan(EXAMPLE)
    assert variants["large + mini"].image == "large"
    assert variants["a tenth of the data"].data_share == 0.1
    assert variants["half is noise"].noise == 0.5
    assert variants["baseline"].noise == 0.0


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("base:", "bases:", "with `base` and `data`"),
        ("recipe:", "recipes:", "unknown field `recipes`"),
        ("noise: 0.5", "noise: 2", "'odd'.*noise=2"),
        ("negatives: 0.5", "negatives: 0", "negatives=0"),
        ("negatives:", "positives:", "'odd'.*positives"),
        ("odd:", "baseline:", "'baseline'.*rename"),
        ("odd:", "a b: {}\n  a_b:", "'a_b'.*folder `a_b`.*'a b'"),
        ("recipe:", "grid: {text: [small]}\nrecipe:", "`grid`.*`image`"),
    ],
)
def test_wrong_plans_are_named(old, new, message, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_plan(plan)


def test_scenes_need_something_that_draws_them(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    with pytest.raises(ValueError, match="pass `draw`"):
        ablation.ablate(plan, tmp_path / "work")


def test_an_encoder_that_lacks_an_argument_is_named():
    encoders = {"image": {"b": {"width_coefficient": 0.2, "depth": 0.2}}}
    variant = ablation.Variant(image="b", text="bert_tiny")
    with pytest.raises(ValueError, match="`encoders: image`.*'depth': 0.2"):
        ablation.build_variant(variant, encoders, 50)


def test_scenes_need_as_many_numbers(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace(", evaluation_scenes: 12", ""))
    with pytest.raises(ValueError, match="lacks `evaluation_scenes`"):
        ablation.ablate(plan, tmp_path / "work", draw=print)
