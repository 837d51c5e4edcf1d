"""The paper's ablations, from one YAML file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import yaml

from align_keras.embedding.embedder import load_embedder
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.fewer_negatives import FewerNegatives
from align_keras.evaluation.results import Result
from align_keras.evaluation.runner import measure_retrieval
from align_keras.io.atomic import atomic_file
from align_keras.io.claims import claim

TOP = ("base", "runs", "grid", "encoders", "recipe", "overrides", "data")
COLUMNS = ("image_to_text_recall@1", "text_to_image_recall@1")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of an ablation.

    Attributes:
        image: string or dict. Name of an entry of `encoders.image`, or of an
            `EfficientNetBackbone` preset, or that backbone's arguments.
        text: string or dict. The same for `BertTextEncoder`.
        embedding_dim: int or `None`, see `AlignDualEncoder`.
        temperature: float or `None`. Held at this value; `None` learns it.
        initial_temperature: float. To start from where it is learned.
        negatives: float. Share of the other pairs of a batch that count.
        data_share: float. Share of the training pictures.
        noise: float. Share of them that get the captions of others.
    """

    image: object
    text: object
    embedding_dim: int | None = None
    temperature: float | None = None
    initial_temperature: float = 1.0
    negatives: float = 1.0
    data_share: float = 1.0
    noise: float = 0.0

    def __post_init__(self):
        for name in ("negatives", "data_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(
                    f"`{name}` must lie in (0, 1]. Received: {name}={value}"
                )
        if not 0 <= self.noise <= 1:
            raise ValueError(
                f"`noise` must lie in [0, 1]. Received: noise={self.noise}"
            )


def read_plan(path):
    """Read an ablation from a YAML file.

    Args:
        path: string or `pathlib.Path`. A mapping with `base` (fields of
            `Variant`), `runs` (from a name to the fields that differ), `grid`
            (lists of `image` and `text` encoders that are crossed),
            `encoders` (named arguments of both kinds), `recipe` and
            `overrides` (see `align_keras.training.load_recipe`), and `data`:
            either `scenes` and `evaluation_scenes`, numbers of pictures to
            draw; or `pictures` (a folder), `captions` (a file), optionally
            `split`, and `evaluation` (TFRecord files).

    Returns:
        A pair: the mapping, and a dictionary from name to `Variant`, in which
        `"baseline"` comes first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is unknown or has a wrong value.
    """
    plan = yaml.safe_load(Path(path).read_text("utf-8"))
    if not isinstance(plan, dict) or not {"base", "data"} <= set(plan):
        raise ValueError(
            f"The ablation `{path}` must be a mapping with `base` and `data`."
        )
    unknown = set(plan) - set(TOP)
    if unknown:
        raise ValueError(
            f"The ablation `{path}` has the unknown field "
            f"`{min(map(str, unknown))}`. Known fields: {', '.join(TOP)}."
        )
    fields = {"baseline": {}, **(plan.get("runs") or {})}
    grid = plan.get("grid") or {}
    for image in grid.get("image", ()):
        for text in grid.get("text", ()):
            fields[f"{image} + {text}"] = {"image": image, "text": text}
    variants = {}
    for name, changes in fields.items():
        try:
            variants[name] = Variant(**{**plan["base"], **(changes or {})})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The run {name!r} of the ablation `{path}` is wrong: {error}"
            ) from None
    return plan, variants


def ablate(path, workdir, samples=1000, verbose=True, say=print):
    """Train and measure every run of an ablation.

    Each run is compared with the baseline by a paired bootstrap. A run that
    is finished is not repeated, and an interrupted one goes on.

    Args:
        path: string or `pathlib.Path`. A YAML file, see `read_plan`.
        workdir: string or `pathlib.Path`. For data, runs, `ablation.md`,
            `ablation.png` (needs matplotlib) and `ablation.json`.
        samples: integer. Resamples of the intervals. Defaults to `1000`.
        verbose: bool. Whether to show the training. Defaults to `True`.
        say: callable that is told in words what happens.

    Returns:
        A dictionary from the name of a run to its `Result`, which has the
        additional fields `"variant"` and `"against_baseline"`.

    Raises:
        ValueError: the file is wrong, or `workdir` holds other data, or
            another ablation's run of the same name.
    """
    plan, variants = read_plan(path)
    workdir = Path(workdir)
    claim(workdir / "data.json", plan["data"])
    source, evaluation = _prepare_data(plan["data"], workdir)
    results = {}
    for name, variant in variants.items():
        say(f"{name}: {_differences(variants['baseline'], variant)}")
        folder = workdir / "runs" / _folder_name(name)
        results[name] = _run(
            plan, name, variant, source, evaluation, folder, samples, verbose
        )
        figures = ", ".join(f"{results[name][c]:.1%}" for c in COLUMNS)
        say(f"{name}: recall@1 {figures}")
        _compare_with(results["baseline"], results[name], samples, say)
    _write(plan, results, workdir)
    say(f"The table is {workdir / 'ablation.md'}")
    return results


def _folder_name(name):
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _differences(baseline, variant):
    changes = [
        f"{field.name}={getattr(variant, field.name)}"
        for field in dataclasses.fields(variant)
        if getattr(variant, field.name) != getattr(baseline, field.name)
    ]
    return ", ".join(changes) or "as it is"


# === One run ===


def _run(plan, name, variant, source, evaluation, folder, samples, verbose):
    from align_keras.training import train

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
    claim(folder / "variant.json", asked)
    if path.is_file():
        return Result.load(path)
    trained = train(
        lambda size: build_variant(variant, encoders, size),
        asked["recipe"],
        data=_corrupted(source, variant, folder.parent.parent / "data"),
        workdir=folder / "run",
        strategy="one-device",
        verbose=verbose,
        **asked["overrides"],
    )
    result = measure_retrieval(
        load_embedder(trained["model"]),
        str(evaluation),
        progress=verbose,
        samples=samples,
    )
    result.update(model=name, dataset="ablation", **asked)
    result.save(path)
    return Result.load(path)


def _arguments(encoders, kind, given):
    """What a name under `encoders` stands for, or what was given itself."""
    return (encoders.get(kind) or {}).get(str(given), given)


def build_variant(variant, encoders, vocabulary_size):
    """Create the model of a run.

    Args:
        variant: `Variant`.
        encoders: dictionary of named encoders, under `"image"` and `"text"`.
        vocabulary_size: integer.

    Returns:
        An `align_keras.AlignDualEncoder` with fresh weights.
    """
    from align_keras import AlignDualEncoder
    from align_keras import BertTextEncoder
    from align_keras import EfficientNetBackbone

    def make(backbone, kind, given, **extra):
        given = _arguments(encoders, kind, given)
        if isinstance(given, dict):
            return backbone(**{**given, **extra})
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

        # Of this one model alone; what is saved is an ordinary encoder.
        model.__dict__["compile"] = compile_with_fewer
    return model


# === Data ===


def _prepare_data(data, workdir):
    """Return the training source and the evaluation records."""
    from align_keras.data import pack
    from align_keras.quickstart.scenes import write_scenes

    if "scenes" not in data:
        for name in ("pictures", "captions", "evaluation"):
            if name not in data:
                raise ValueError(
                    f"The ablation's `data` lacks `{name}`; it needs either "
                    "`scenes` and `evaluation_scenes`, or `pictures`, "
                    "`captions` and `evaluation`."
                )
        return data, data["evaluation"]
    folder = workdir / "data"
    counts = {"train": data["scenes"], "evaluation": data["evaluation_scenes"]}
    for split, count in counts.items():
        if not (folder / split / "captions.csv").is_file():
            write_scenes(folder / split, count, 0, split)
    packed = folder / "packed_evaluation"
    if not (packed / "manifest.json").is_file():
        pack(
            folder / "evaluation",
            packed,
            captions=folder / "evaluation" / "captions.csv",
        )
    train = folder / "train"
    return {"pictures": train, "captions": train / "captions.csv"}, packed


def _corrupted(source, variant, folder):
    """Pack a share of the data, some of it with the captions of others."""
    from align_keras.data import pack
    from align_keras.data import read_captions

    name = f"packed_share-{variant.data_share}_noise-{variant.noise}"
    packed = Path(folder) / name
    if (packed / "manifest.json").is_file():
        return str(packed)
    captions = read_captions(source["captions"], split=source.get("split"))
    chosen = corrupt(captions, variant.data_share, variant.noise)
    listed = Path(folder) / f"{name}.jsonl"
    with atomic_file(listed) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            for image, texts in chosen.items():
                row = {"image": image, "caption": texts}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    pack(source["pictures"], packed, captions=listed)
    return str(packed)


def corrupt(captions, share, noise, seed=0):
    """Take a share of pictures, and swap the captions of some.

    Smaller shares are parts of larger ones, and so are the swaps.

    Args:
        captions: dictionary from picture to list of captions.
        share: float. Part of the pictures to take.
        noise: float. Part of these whose captions move on to the next.
        seed: integer. Defaults to `0`.

    Returns:
        A dictionary of the same form.
    """
    rng = np.random.default_rng(seed)
    names = list(captions)
    order = rng.permutation(len(names))
    kept = [names[n] for n in order[: max(1, round(share * len(names)))]]
    wrong = kept[: round(noise * len(kept))]
    chosen = {name: captions[name] for name in kept}
    for name, other in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        chosen[name] = captions[other]
    return chosen


# === Report ===


def _compare_with(baseline, result, samples, say):
    if result is baseline or not samples:
        return
    found = compare_results(baseline, result, samples)
    if samples < found["samples_needed"]:
        say(
            f"{samples} resamples can show no difference from the baseline: "
            f"it takes {found['samples_needed']}."
        )
    result["against_baseline"] = {
        row["name"]: row for row in found["figures"] if row["name"] in COLUMNS
    }


def _write(plan, results, workdir):
    plotted = _plot(plan, results, workdir / "ablation.png")
    headings = [name.replace("_", " ") for name in COLUMNS]
    lines = [
        "# Ablation",
        "",
        "Percentages with 95% bootstrap intervals; a star marks what differs "
        "from the baseline (paired bootstrap, p < 0.05).",
        "",
        "| | " + " | ".join(headings) + " |",
        "|---|" + "---:|" * len(headings),
    ]
    for name, result in results.items():
        cells = [_cell(result, column) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if plotted:
        lines += ["", "![Recall of each run](ablation.png)"]
    with atomic_file(workdir / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    with atomic_file(workdir / "ablation.json") as temporary:
        rows = {n: json.loads(r.to_json()) for n, r in results.items()}
        temporary.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


def _cell(result, column):
    low, high = result["intervals"][column]
    text = f"{100 * result[column]:.1f}"
    if low is not None:
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    row = result.get("against_baseline", {}).get(column)
    return text + (" *" if row and row["differs"] else "")


def _plot(plan, results, path):
    """Lines over image encoders as in the paper's figure 3, and bars."""
    from align_keras.evaluation.report import pyplot

    plt = pyplot()
    if plt is None:
        return False
    grid = plan.get("grid") or {}
    others = [name for name in results if " + " not in name]
    figure, panels = plt.subplots(
        1, 1 + bool(grid), figsize=(5 + 4 * bool(grid), 4), squeeze=False
    )
    bars = panels[0][-1]
    for number, column in enumerate(COLUMNS):
        places = np.arange(len(others)) + 0.4 * (number - 0.5)
        values = [100 * results[name][column] for name in others]
        bars.barh(places, values, 0.36, label=column.replace("_", " "))
    bars.set_yticks(range(len(others)), others)
    bars.invert_yaxis()
    bars.set_xlabel("%")
    bars.legend(fontsize=7)
    for text in grid.get("text", ()):
        values = [
            100 * results[f"{image} + {text}"]["mean_recall"]
            for image in grid["image"]
        ]
        panels[0][0].plot(grid["image"], values, "o-", label=str(text))
    if grid:
        panels[0][0].set_xlabel("image encoder")
        panels[0][0].set_ylabel("mean recall, %")
        panels[0][0].legend(title="text encoder", fontsize=7)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    return True
