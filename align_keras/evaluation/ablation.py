"""Run ablations like the paper's, described in one YAML file."""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from align_keras.embedding.loading import load_embedder
from align_keras.evaluation.ablation_data import pack_variant
from align_keras.evaluation.ablation_data import prepare_data
from align_keras.evaluation.ablation_plan import Variant
from align_keras.evaluation.ablation_plan import folder_name
from align_keras.evaluation.ablation_plan import read_plan
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.datasets import captioned
from align_keras.evaluation.fewer_negatives import FewerNegatives
from align_keras.evaluation.markdown_report import markdown_table
from align_keras.evaluation.markdown_report import metric_cell
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import plain
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.io.atomic import atomic_file
from align_keras.io.claims import claim
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import locked
from align_keras.io.plots import pyplot
from align_keras.io.plots import save_plot
from align_keras.models import AlignDualEncoder
from align_keras.models import BertTextEncoder
from align_keras.models import EfficientNetBackbone
from align_keras.training import train

logger = logging.getLogger("align_keras")


COLUMNS = ("image_to_text_recall@1", "text_to_image_recall@1")


@locked("workdir")
def ablate(
    path: str | Path,
    workdir: str | Path,
    draw: Callable | None = None,
    samples: int = SAMPLES,
    verbose: bool = True,
    allow_outside: bool = False,
) -> dict[str, Result]:
    """Train and measure every run of an ablation.

    Each run is compared with the baseline by a paired bootstrap. Finished
    runs are not repeated, and an interrupted run resumes.

    Args:
        path: string or `pathlib.Path`. A YAML file, see `read_plan`.
        workdir: string or `pathlib.Path`. The directory for data, runs,
            `ablation.md`, `ablation.png` (needs matplotlib) and
            `ablation.json`.
        draw: callable. Takes a folder, a number of images, a seed and the
            name of a split, and writes images with a `captions.csv` into the
            folder, as `align_keras.quickstart.write_scenes` does. Needed if
            the plan asks for `scenes`. Defaults to `None`.
        samples: integer. Resamples for the intervals. Defaults to `1000`.
        verbose: bool. Whether to show the training. Defaults to `True`.
        allow_outside: bool. Whether names and links may lead out of the
            folders of the plan's `data`. Defaults to `False`.

    Returns:
        A dictionary from the name of a run to its `Result`, which has the
        additional fields `"variant"` and `"against_baseline"`.

    Raises:
        ValueError: the file is invalid, or `workdir` holds other data, or a
            run of the same name with other settings.
    """
    plan, variants = read_plan(path)
    workdir = Path(workdir)
    if allow_outside:
        plan["data"]["allow_outside"] = True
    claim(workdir / "data.json", plan["data"], "an ablation")
    source, evaluation = prepare_data(plan["data"], workdir / "data", draw)
    evaluation = captioned(evaluation, allow_outside=allow_outside)
    results = {}
    for name, variant in variants.items():
        changes = _differences(variants["baseline"], variant)
        logger.info("%s: %s", name, changes)
        folder = workdir / "runs" / folder_name(name)
        results[name] = _run(
            plan, name, variant, source, evaluation, folder, samples, verbose
        )
        recalls = ", ".join(f"{results[name][c]:.1%}" for c in COLUMNS)
        logger.info("%s: recall@1 %s", name, recalls)
        _compare_with(results["baseline"], results[name], samples)
    _write(plan, results, workdir)
    logger.info("The table is %s", workdir / "ablation.md")
    return results


def _differences(baseline, variant):
    changes = [
        f"{field.name}={getattr(variant, field.name)}"
        for field in dataclasses.fields(variant)
        if getattr(variant, field.name) != getattr(baseline, field.name)
    ]
    return ", ".join(changes) or "as it is"


# === One run ===


def _run(plan, name, variant, source, evaluation, folder, samples, verbose):
    path = folder / "result.json"
    encoders = plan.get("encoders") or {}
    asked = {
        "variant": dataclasses.asdict(variant),
        "encoders": {
            kind: _arguments(encoders, kind, getattr(variant, kind))
            for kind in ("image", "text")
        },
        "recipe": plan.get("recipe", "quickstart"),
        "overrides": plan.get("overrides") or {},
        "samples": samples,
    }
    claim(folder / "variant.json", asked, "a run")
    if path.is_file():
        return Result.load(path)
    trained = train(
        lambda size: build_variant(variant, encoders, size),
        asked["recipe"],
        data=pack_variant(source, variant, folder.parent.parent / "data"),
        workdir=folder / "run",
        strategy="one-device",
        verbose=verbose,
        **asked["overrides"],
    )
    result = measure_retrieval(
        load_embedder(trained["model"]),
        evaluation,
        progress=verbose,
        samples=samples,
    )
    result.update(model=name, dataset="ablation", **asked)
    result.save(path)
    return Result.load(path)


def _arguments(encoders, kind, given):
    """Return the arguments that a name stands for, or the value itself."""
    return (encoders.get(kind) or {}).get(str(given), given)


def build_variant(
    variant: Variant, encoders: dict, vocabulary_size: int
) -> AlignDualEncoder:
    """Create the model of a run.

    Args:
        variant: `Variant`.
        encoders: dictionary. Arguments of named encoders, under `"image"` and
            `"text"`.
        vocabulary_size: integer.

    Returns:
        An `align_keras.AlignDualEncoder` with fresh weights.
    """

    def make(backbone, kind, given, **extra):
        given = _arguments(encoders, kind, given)
        if isinstance(given, dict):
            try:
                return backbone(**{**given, **extra})
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"The arguments of an encoder under `encoders: {kind}` are "
                    f"not valid for `{backbone.__name__}`: {error}. Received: "
                    f"{given}"
                ) from error
        return backbone.from_preset(given, load_weights=False, **extra)

    held = variant.temperature is not None
    model = AlignDualEncoder(
        make(EfficientNetBackbone, "image", variant.image),
        make(
            BertTextEncoder,
            "text",
            variant.text,
            vocabulary_size=vocabulary_size,
        ),
        embedding_dim=variant.embedding_dim,
        initial_temperature=(
            variant.temperature if held else variant.initial_temperature
        ),
    )
    model.contrastive_head.trainable = not held
    if variant.negatives < 1:
        compile_model = model.compile

        def compile_with_fewer(loss, **kwargs):
            fewer = FewerNegatives(variant.negatives, loss.label_smoothing)
            compile_model(loss=fewer, **kwargs)

        # Only this object has it: the saved model is an ordinary encoder.
        model.__dict__["compile"] = compile_with_fewer
    return model


# === Report ===


def _compare_with(baseline, result, samples):
    if result is baseline or not samples:
        return
    found = compare_results(baseline, result, samples)
    if samples < found["samples_needed"]:
        logger.warning(
            "%d resamples cannot show any difference from the baseline: it "
            "takes at least %d.",
            samples,
            found["samples_needed"],
        )
    result["against_baseline"] = {
        row["name"]: row for row in found["metrics"] if row["name"] in COLUMNS
    }


def _write(plan, results, workdir):
    plotted = _plot(plan, results, workdir / "ablation.png")
    headings = [name.replace("_", " ") for name in COLUMNS]
    rows = {
        name: [_cell(result, column) for column in COLUMNS]
        for name, result in results.items()
    }
    lines = [
        "# Ablation",
        "",
        "Percentages with 95% bootstrap intervals; a star marks what differs "
        "from the baseline (paired bootstrap, p < 0.05).",
        "",
        *markdown_table(headings, rows),
    ]
    if plotted:
        lines += ["", "![Recall of each run](ablation.png)"]
    with atomic_file(workdir / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    write_json(workdir / "ablation.json", plain(results))


def _cell(result, column):
    row = result.get("against_baseline", {}).get(column)
    return metric_cell(result, column) + " *" * bool(row and row["differs"])


def _plot(plan, results, path):
    """Plot lines over image encoders, like the paper's Figure 3, and bars."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    plt = pyplot(extra="evaluation")
    grid = plan.get("grid") or {}
    others = [name for name in results if " + " not in name]
    figure, panels = plt.subplots(
        1, 1 + bool(grid), figsize=(6 + 4 * bool(grid), 4.4), squeeze=False
    )
    bars = panels[0][-1]
    for number, column in enumerate(COLUMNS):
        color = f"C{number}"
        places = np.arange(len(others)) + 0.4 * (number - 0.5)
        values, errors = _drawn([results[name] for name in others], column)
        bars.barh(
            places,
            values,
            0.36,
            xerr=errors,
            color=color,
            error_kw={"lw": 1, "capsize": 2},
            label=column.replace("_", " "),
        )
    _draw_chance(bars.axvline, results, COLUMNS[0])
    bars.set_yticks(range(len(others)), others)
    bars.invert_yaxis()
    bars.set_xlabel("%")
    _legend_above(bars)
    for number, text in enumerate(grid.get("text", ())):
        found = [results[f"{image} + {text}"] for image in grid["image"]]
        values, errors = _drawn(found, "mean_recall")
        # Shifted a little, so that no interval hides another.
        places = np.arange(len(values)) + 0.06 * number
        panels[0][0].errorbar(
            places, values, errors, fmt="o-", capsize=2, label=str(text)
        )
    if grid:
        panels[0][0].set_xticks(range(len(grid["image"])), grid["image"])
        panels[0][0].set_xlabel("image encoder")
        panels[0][0].set_ylabel("mean recall, %")
        _draw_chance(panels[0][0].axhline, results, "mean_recall")
        _legend_above(panels[0][0], title="text encoder")
    figure.tight_layout()
    save_plot(plt, figure, path)
    return True


def _drawn(found, name):
    """Return percentages, and the lengths of error bars `(2, runs)`."""
    values = np.array([100 * result[name] for result in found])
    ends = [result["intervals"].get(name) or (None, None) for result in found]
    low, high = 100 * np.array(ends, float).reshape(-1, 2).T
    low = np.where(np.isnan(low), values, low)
    high = np.where(np.isnan(high), values, high)
    return values, np.maximum(0, [values - low, high - values])


def _draw_chance(draw, results, name):
    """Draw the line of a random order, which is the same for all runs."""
    chance = next(iter(results.values())).get(f"chance_{name}")
    if chance is not None:
        draw(100 * chance, color="gray", ls=":", label="chance")


def _legend_above(axes, title=None):
    """Put the legend above the axes, where it hides nothing."""
    axes.legend(
        title=title,
        fontsize=7,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
