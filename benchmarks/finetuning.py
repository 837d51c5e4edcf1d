"""What fine-tuning learns and forgets, beside training from scratch.

    python benchmarks/finetuning.py --emoji emoji --workdir run
    python benchmarks/finetuning.py --scenes --workdir run
    python benchmarks/finetuning.py --emoji emoji --text-weights minilm \
        --workdir run

A model is trained on the old task, the images of one vendor, and fine-tuned
with the recipe `finetune` on a few hundred images of another vendor. It is
compared with the model before fine-tuning (zero-shot), a model trained only on
the few images (scratch), and averages of the old and the new model (WiSE-FT).
With `--text-weights`, models with this text tower are compared on the old task:
frozen, unfrozen after a third of the steps, and from scratch.

Mean recall is over both directions between names and images, at 1, 5 and 10,
with 95% intervals of a bootstrap over images. "Against" is the paired
difference from the first row. `--emoji` is a folder with `items.csv` (split,
image, vendor) and the folders `train`, `val` and `test_vendor` of images, each
with a `captions.csv`. `--scenes` draws the tasks, and tests this script in a
minute or two. Runs resume.
"""

import csv
import random
from pathlib import Path

import tables
from PIL import Image
from PIL import ImageOps

PRESET, IMAGE = "align_b0_bert_mini", "efficientnet_b0"
TASKS = ("old", "new")
WEIGHTS = (0.2, 0.4, 0.6, 0.8)


def emoji(source, work, few):
    """Pack the emoji of one vendor, and `few` of the other vendor."""
    source = Path(source)
    with open(source / "items.csv", encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    of = {}
    for item in items:
        key = item["split"], item["vendor"]
        of.setdefault(key, []).append(item["image"])
    random.Random(0).shuffle(of["train", "twitter"])
    parts = {
        "old-train": ("train", of["train", "google"]),
        "old-test": ("val", of["val", "google"]),
        "new-train": ("train", of["train", "twitter"][:few]),
        "new-test": ("test_vendor", of["test_vendor", "twitter"]),
    }
    return {
        name: _pack(source / split, images, work / name)
        for name, (split, images) in parts.items()
    }


def scenes(work, few):
    """Draw two tasks: scenes, and scenes in the opposite colors."""
    from align_keras.quickstart.scenes import write_scenes

    parts = {}
    for split, count in (("train", 320), ("evaluation", 80)):
        source = work / split
        if not (source / "captions.csv").is_file():
            write_scenes(source, count, split=split)
        images = sorted({row["image"] for row in _captions(source)})
        name = "test" if split == "evaluation" else "train"
        parts[f"old-{name}"] = _pack(source, images, work / f"old-{name}")
        inverted = work / f"inverted-{split}"
        _invert(source, inverted)
        images = images[:few] if name == "train" else images
        parts[f"new-{name}"] = _pack(inverted, images, work / f"new-{name}")
    return parts


def _invert(source, target):
    rows = _captions(source)
    for row in rows:
        path = target / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with Image.open(source / row["image"]) as image:
                ImageOps.invert(image.convert("RGB")).save(path)
    content = (source / "captions.csv").read_bytes()
    (target / "captions.csv").write_bytes(content)


def _captions(folder):
    with open(folder / "captions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _pack(source, images, packed):
    """Pack some images of a folder with their captions."""
    from align_keras.data import pack

    if not packed.is_dir():
        rows = [r for r in _captions(source) if r["image"] in set(images)]
        captions = packed.with_suffix(".csv")
        with open(captions, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("image", "caption"))
            writer.writeheader()
            writer.writerows(
                {name: row[name] for name in ("image", "caption")}
                for row in rows
            )
        pack(source, packed, captions)
    return str(packed)


def train(name, args, data, steps, model=PRESET, recipe="small", **fields):
    """Train a model unless it exists; return its preset directory."""
    from align_keras.training import train

    result = train(
        model,
        recipe,
        data,
        args.workdir / name,
        seed=args.seed,
        steps=steps,
        warmup_steps=max(1, steps // 10),
        checkpoint_every=steps,
        image_size=args.image_size,
        batch_size=args.batch_size,
        sequence_length=24,
        resize_ratio=1.0,
        **fields,
    )
    return result["model"]


def measure(model, data):
    from align_keras import AlignDualEncoder
    from align_keras.evaluation import measure_retrieval

    if not hasattr(model, "embed"):
        model = AlignDualEncoder.from_preset(model)
    return {
        task: measure_retrieval(model, data[f"{task}-test"], progress=False)
        for task in TASKS
    }


def fine_tune(args, data):
    """Compare the old model, the new one, one from scratch and averages."""
    from align_keras.training.averaging import average

    old = train("old", args, data["old-train"], args.steps)
    few = max(1, args.steps // 4)
    new = train(
        "new",
        args,
        data["new-train"],
        few,
        old,
        "finetune",
        learning_rate=args.learning_rate,
    )
    scratch = train("scratch", args, data["new-train"], few)
    models = {"zero-shot": old, "fine-tuned": new, "scratch": scratch}
    found = {name: measure(model, data) for name, model in models.items()}
    for weight in WEIGHTS:
        found[f"average, weight {weight:g}"] = measure(
            average(old, new, weight), data
        )
    return found


def start_from_words(args, data):
    """Compare ways to train a pretrained text tower with a fresh one."""
    known = {
        "model": None,
        "image_weights": IMAGE,
        "text_weights": args.text_weights,
        "freeze": "text",
    }
    third = max(1, args.steps // 3)
    ways = {
        "from scratch": {},
        "known words, frozen": known,
        "known words, unfrozen": {**known, "unfreeze_after": third},
    }
    return {
        name: measure(
            train(
                name.replace(" ", "-"),
                args,
                data["old-train"],
                args.steps,
                **way,
            ),
            data,
        )
        for name, way in ways.items()
    }


def table(found):
    """Format a row for each model: recall on both tasks and differences."""
    from align_keras.evaluation.compare import compare_results

    first = next(iter(found.values()))
    lines = [
        "| | old task | against | new task | against |",
        "|---|---|---|---|---|",
    ]
    for name, result in found.items():
        cells = [name]
        for task in TASKS:
            row = result[task]
            cells.append(
                _percent(row["mean_recall"], row["intervals"]["mean_recall"])
            )
            if result is first:
                cells.append("")
                continue
            rows = compare_results(first[task], row)["metrics"]
            paired = next(f for f in rows if f["name"] == "mean_recall")
            span = paired["low"], paired["high"]
            cells.append(_percent(paired["difference"], span))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(value, span):
    low, high = (100 * end for end in span)
    return f"{100 * value:.1f} [{low:.1f}, {high:.1f}]"


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--emoji", help="folder with items.csv")
    parser.add_argument("--scenes", action="store_true", help="draw the tasks")
    parser.add_argument("--text-weights", help="a known text tower")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--few", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.emoji) == args.scenes:
        parser.error("give either --emoji or --scenes")
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.scenes:
        data = scenes(args.workdir, args.few)
    else:
        data = emoji(args.emoji, args.workdir, args.few)
    compare = start_from_words if args.text_weights else fine_tune
    kind = "words" if args.text_weights else "finetuning"
    title = (
        f"Mean recall, %, after {args.steps} steps of {args.batch_size} pairs "
        f"at {args.image_size} pixels ({args.few} new images):"
    )
    tables.publish(args, title, table(compare(args, data)), kind)


if __name__ == "__main__":
    main()
