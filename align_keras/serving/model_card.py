"""Write the model card of a published model from its training run."""

import math
from pathlib import Path

import yaml

from align_keras.data.parts import read_manifest
from align_keras.io.json_files import read_object
from align_keras.models.presets import load_config
from align_keras.training.checkpoints import Checkpoints

# Settings of a run to list in the card, in this order.
_FIELDS = (
    "model",
    "image_weights",
    "text_weights",
    "steps",
    "batch_size",
    "loss",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "image_size",
    "sequence_length",
    "precision",
    "freeze",
    "lora_rank",
    "ema",
    "seed",
)
_WAYS = {
    "image_to_text": "image → text",
    "text_to_image": "text → image",
}
# Two-sided, 95 %.
_Z = 1.959963984540054


def model_card(handle, preset, run=None, license=None, language=None):
    """Return the model card of a preset, in the format of Hugging Face's hub.

    Args:
        handle: string. The handle under which the model will be published,
            such as `"hf://user/name"`.
        preset: string or `pathlib.Path`. Directory of the preset.
        run: string or `pathlib.Path`. Directory of the run that trained the
            model. Defaults to `None`: the card leaves out training and
            metrics.
        license: string. The hub's name of a licence, such as `"apache-2.0"`.
            Defaults to `None`: no licence is stated.
        language: list of strings. Codes of the languages of the texts, such
            as `["en"]`. Defaults to `None`.

    Returns:
        string, Markdown with YAML front matter.
    """
    head = {
        "library_name": "keras",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["align", "align_keras", "dual-encoder", "keras"],
        **({"license": license} if license else {}),
        **({"language": list(language)} if language else {}),
    }
    parts = [_usage(handle)]
    if run is not None:
        parts += [_training(Path(run)), _metrics(Path(run))]
    parts.append(_architecture(preset))
    if not license:
        parts.append("No licence has been stated for these weights.")
    title = f"# {handle.rpartition('/')[2]}"
    text = "\n\n".join([title, *filter(None, parts)])
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{text}\n"


def _usage(handle):
    return f"""An image encoder and a text encoder, trained with a contrastive
loss as in [ALIGN](https://arxiv.org/abs/2102.05918).

```python
from align_keras import AlignDualEncoder
from align_keras.classes import classify

model = AlignDualEncoder.from_preset("{handle}")
classify(model, ["photo.jpg"], ["a cat", "a dog"])
```"""


def _architecture(preset):
    config = load_config(preset)["config"]
    lines = ["## Architecture", "", "| | |", "|---|---|"]
    for kind in ("image", "text"):
        tower = config[f"{kind}_encoder"]
        name = tower["config"].get("name", "")
        lines.append(f"| {kind} encoder | `{tower['class_name']}` ({name}) |")
    lines.append(f"| embedding size | {config['embedding_dim']} |")
    return "\n".join(lines)


def _training(run):
    asked = read_object(
        run / "recipe.json", {}, "recipe of a run", "Copy the run again."
    )
    lines = ["## Training", "", "| | |", "|---|---|"]
    lines += [
        f"| `{name}` | {asked[name]} |"
        for name in _FIELDS
        if asked.get(name) is not None
    ]
    manifest = run / "packed" / "manifest.json"
    if manifest.is_file():
        held = read_manifest(manifest)
        lines.append(f"| images | {held['records']} |")
        lines.append(f"| captions | {held['captions']} |")
    return "\n".join(lines)


def _metrics(run):
    best = Checkpoints(run).state().get("best") or {}
    metrics = best.get("metrics") or {}
    lines = []
    for way, title in _WAYS.items():
        queries = metrics.get("images" if way == "image_to_text" else "texts")
        prefix = f"{way}_recall@"
        for name, value in metrics.items():
            if not name.startswith(prefix):
                continue
            low, high = wilson_interval(value, queries)
            chance = metrics.get(f"chance_{name}")
            lines.append(
                f"| {title}, recall@{name.removeprefix(prefix)} "
                f"| {100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f}) "
                f"| {'' if chance is None else f'{100 * chance:.1f}'} |"
            )
    if not lines:
        return (
            "## Metrics\n\nNothing was held out from training, so nothing was "
            "measured."
        )
    return "\n".join(
        [
            "## Metrics",
            "",
            f"On {metrics['images']} images with {metrics['texts']} captions "
            f"that were held out, after {best['step']} steps, in %. Wilson's "
            "95 % intervals, in parentheses, treat each query as independent "
            "of the others. The step was chosen on the same images, so it "
            "looks a little better than it is.",
            "",
            "| | recall | chance |",
            "|---|---:|---:|",
            *lines,
        ]
    )


def wilson_interval(share, count):
    """Return the bounds of Wilson's 95 % interval for a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927.

    Args:
        share: float from 0 to 1. The observed proportion.
        count: int. The number of observations.

    Returns:
        Two floats from 0 to 1, the lower and the upper bound.
    """
    square = _Z * _Z / count
    center = (share + square / 2) / (1 + square)
    spread = share * (1 - share) * square + square * square / 4
    half = math.sqrt(spread) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)
