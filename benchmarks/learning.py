"""What is learned from the same pairs, beside open_clip with timm's towers.

    python benchmarks/learning.py --data emoji --steps 300 --seeds 3
    python benchmarks/learning.py --data emoji --cpu-seconds 600 --seeds 3
    python benchmarks/learning.py --data emoji --steps 300 --ablate
    python benchmarks/learning.py --scenes 8000 --steps 300

`--data` is a folder with `train` and any number of `test_…` folders. Each has
images and a `captions.csv` (image, caption), in which the first row of an image
is its name. `--scenes` draws such a folder. Both sides get the same files,
batch, resolution and text length, an EfficientNet-B0 and a text transformer of
four layers of width 256. Otherwise each uses its own defaults: our recipe
`small`, and open_clip's defaults except for its warm-up of 10,000 steps; both
warm up for a tenth of the steps instead.

Each run has its own process. Recall is between names and images, both ways, and
ties count against the model. Intervals are of the mean over the seeds, from a
paired bootstrap over the queries. Finished runs are kept in `--cache` and
reused.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import networks
import numpy as np
import tables
import turns

RECIPES = Path(__file__).resolve().parents[1] / "presets" / "recipes"
PRESET, RECIPE = "align_b0_bert_mini", "small"
DEPTHS = (1, 5)
DRAWS = 2000
# Steps from which the processor time of a step is estimated.
PROBE = 12

# The changes of `--ablate`, one at a time: fields of the recipe, except for
# `sorted`, `plain_statistics` and `stored`, for which see `ours`.
ABLATIONS = {
    "as it is": {},
    "rows as they are sorted": {"sorted": True},
    "moving statistics without a warm-up": {"plain_statistics": True},
    "the text's first token": {"text_pooling": "first"},
    "text dropout 0.1": {"text_dropout": 0.1},
    "drop connect 0.2": {"drop_connect": 0.2},
    "no label smoothing": {"label_smoothing": 0.0},
    "temperature 0.07": {"initial_temperature": 0.07},
    "images mirrored at random": {"mirror": True},
    "images whole": {"resize_ratio": 1.0},
    "crops of the paper's share": {"resize_ratio": 346 / 289},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "learning rate 5e-4": {"learning_rate": 5e-4},
    "weight decay 0.2": {"weight_decay": 0.2},
    "records of resized images": {"stored": True},
}


# === Data ===


def read_folder(folder):
    """Read `captions.csv`; return sorted pairs of a file and its captions."""
    captions = {}
    with open(Path(folder) / "captions.csv", newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return sorted(captions.items())


def test_sets(data):
    """Return a dict from test to its files, names and matching indices."""
    found = {}
    for folder in sorted(Path(data).glob("test_*")):
        rows = read_folder(folder)
        names = sorted({captions[0] for _, captions in rows})
        labels = [names.index(captions[0]) for _, captions in rows]
        files = [str(folder / file) for file, _ in rows]
        found[folder.name] = files, names, np.array(labels)
    return found


def training_folder(data, cache, seed, shuffled=True):
    """Write the training pairs to a folder, in sorted or random order."""
    source = Path(data).resolve() / "train"
    rows = [
        (file, caption)
        for file, captions in read_folder(source)
        for caption in captions
    ]
    if shuffled:
        random.Random(seed).shuffle(rows)
    folder = Path(cache) / (f"train-{seed}" if shuffled else "train-sorted")
    if not (folder / "captions.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for file in {file for file, _ in rows}:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(source / file)
        with open(folder / "captions.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "caption"))
            writer.writerows(rows)
    return folder


def draw_scenes(folder, count, evaluation=400):
    """Draw scenes to a folder in the form of `--data`."""
    from align_keras.quickstart.scenes import write_scenes

    for name, size, split in (
        ("train", count, "train"),
        ("test_combinations", evaluation, "evaluation"),
    ):
        if not (folder / name / "captions.csv").is_file():
            write_scenes(folder / name, size, 0, split)
    return folder


# === One run of a side ===


def ours(data, cache, seed, steps, args, changes):
    """Train as `align-keras train` does; return seconds and `embed`."""
    from align_keras import AlignDualEncoder
    from align_keras.data import pack
    from align_keras.embedding import embed_images
    from align_keras.embedding import embed_texts
    from align_keras.training import load_recipe
    from align_keras.training import train

    changes = dict(changes)
    in_order = changes.pop("sorted", False)
    if changes.pop("plain_statistics", False):
        settle_normalizations()
    source = training_folder(data, cache, seed, not in_order)
    packed = Path(cache) / f"packed-{source.name}"
    size = None
    if changes.pop("stored", False):
        image_size = args["image_size"]
        size = load_recipe(args["recipe"], image_size=image_size).resize_size
        packed = packed.with_name(f"{packed.name}-{size}")
    if not (packed / "manifest.json").is_file():
        pack(
            source,
            packed,
            captions=source / "captions.csv",
            resize=size,
            allow_outside=True,  # Its images are links.
        )
    fields = {
        "steps": steps,
        "warmup_steps": max(1, steps // 10),
        "checkpoint_every": steps,
        "batch_size": args["batch"],
        "image_size": args["image_size"],
        "sequence_length": args["tokens"],
        **changes,
    }
    start = time.process_time()
    trained = train(
        args["preset"],
        args["recipe"],
        data=str(packed),
        workdir=Path(args["workdir"]),
        strategy="one-device",
        seed=seed,
        **fields,
    )
    seconds = time.process_time() - start
    model = AlignDualEncoder.from_preset(trained["model"])

    def embed(files, names):
        return (
            embed_images(model, files, progress=False),
            embed_texts(model, names, progress=False),
        )

    return seconds, embed


def settle_normalizations():
    """Turn off the warm-up of the moving statistics."""
    from align_keras.models.batch_normalization import BatchNormalization

    build = BatchNormalization.build

    def build_settled(layer, input_shape):
        build(layer, input_shape)
        layer.settle()

    BatchNormalization.build = build_settled


def theirs(data, cache, seed, steps, args, changes):
    """Train as open_clip does; return seconds and `embed`."""
    import torch

    size, tokens = args["image_size"], args["tokens"]
    model = networks.open_clip_model(size, tokens, seed)
    import open_clip
    from PIL import Image

    tokenizer = open_clip.SimpleTokenizer(context_length=tokens)
    prepare = open_clip.transform.AugmentationCfg(), open_clip.image_transform
    into_train = prepare[1](size, is_train=True, aug_cfg=prepare[0])
    into_test = prepare[1](size, is_train=False)
    source = Path(data) / "train"
    pairs = [
        (source / file, caption)
        for file, captions in read_folder(source)
        for caption in captions
    ]

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(pairs)

        def __getitem__(self, index):
            file, caption = pairs[index]
            return into_train(Image.open(file)), tokenizer(caption)[0]

    loader = torch.utils.data.DataLoader(
        Pairs(), args["batch"], shuffle=True, drop_last=True
    )
    optimizer = networks.open_clip_optimizer(model)
    compare = open_clip.ClipLoss()
    warmup = max(1, steps // 10)
    start, step = time.process_time(), 0
    model.train()
    while step < steps:
        for images, texts in loader:
            if step == steps:
                break
            rate = 5e-4 * (step + 1) / warmup
            if step >= warmup:
                passed = (step - warmup) / max(1, steps - warmup)
                rate = 0.5 * (1 + np.cos(np.pi * passed)) * 5e-4
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            images = images.to(memory_format=torch.channels_last)
            features = model(images, texts)
            loss = compare(*features[:3])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(100))
            step += 1
            if step % 25 == 0:
                print(step, round(float(loss.detach()), 3), flush=True)
    seconds = time.process_time() - start
    model.eval()

    def embed(files, names):
        images = torch.stack([into_test(Image.open(file)) for file in files])
        with torch.no_grad():
            parts = [
                torch.cat([run(part) for part in torch.split(inputs, 64)])
                for run, inputs in (
                    (model.encode_image, images),
                    (model.encode_text, tokenizer(names)),
                )
            ]
        return [part.numpy() for part in parts]

    return seconds, embed


def run_side(work):
    """Train, embed and write the results, in the process of a run."""
    side = {"ours": ours, "theirs": theirs}[work["side"]]
    settings = work["args"]
    steps = settings["steps"]
    if steps is None:
        steps = steps_within(side, work, settings)
    settings = {**settings, "workdir": str(Path(work["folder"]) / "run")}
    seconds, embed = side(
        work["data"],
        work["cache"],
        work["seed"],
        steps,
        settings,
        work["changes"],
    )
    for name, (files, names, _) in test_sets(work["data"]).items():
        images, texts = embed(files, names)
        path = Path(work["folder"]) / f"{name}.npz"
        np.savez(path, images=images, texts=texts)
    result = {"steps": steps, "seconds": seconds}
    (Path(work["folder"]) / "result.json").write_text(json.dumps(result))


def steps_within(side, work, settings):
    """Find how many steps fit into `--cpu-seconds`, including the start."""
    seconds = []
    for steps in (PROBE, 3 * PROBE):
        part = {
            **settings,
            "workdir": str(Path(work["folder"]) / f"probe-{steps}"),
        }
        seconds.append(
            side(
                work["data"],
                work["cache"],
                work["seed"],
                steps,
                part,
                work["changes"],
            )[0]
        )
    each = (seconds[1] - seconds[0]) / (2 * PROBE)
    start = seconds[0] - PROBE * each
    return max(1, int((settings["cpu_seconds"] - start) / each))


def run(side, seed, args, changes=None):
    """Run a side once in its own process, or read its earlier result."""
    settings = {
        name: getattr(args, name)
        for name in (
            "steps",
            "cpu_seconds",
            "batch",
            "image_size",
            "tokens",
            "preset",
            "recipe",
        )
    }
    work = {
        "side": side,
        "data": str(Path(args.data).resolve()),
        "cache": str(Path(args.cache) / Path(args.data).resolve().name),
        "seed": seed,
        "args": settings,
        "changes": changes or {},
    }
    if side == "ours":
        # A changed recipe makes another run.
        work["fields"] = recipe_text(args.recipe)
    name = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
    folder = Path(args.cache) / "runs" / f"{side}-{seed}-{name[:12]}"
    result = folder / "result.json"
    if not result.is_file():
        # An interrupted run would resume, and its full cost be underestimated.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        work["folder"] = str(folder)
        with open(folder / "log.txt", "w") as log:
            subprocess.run(
                [sys.executable, __file__, "--work", json.dumps(work)],
                env={**turns.quiet(), **as_many_threads(args.threads)},
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    return {**json.loads(result.read_text()), "folder": folder}


def recipe_text(recipe):
    shipped = RECIPES / f"{recipe}.yaml"
    return (shipped if shipped.is_file() else Path(recipe)).read_text()


def as_many_threads(count):
    """Return the environment of a run, with equal threads for both sides."""
    return {
        "OMP_NUM_THREADS": str(count),
        "TF_NUM_INTRAOP_THREADS": str(count),
        "TF_NUM_INTEROP_THREADS": "1",
    }


# === Recall ===


def ranks(run, data):
    """Rank the right answer of each query; return arrays by metric."""
    found = {}
    for name, (_, _, labels) in test_sets(data).items():
        with np.load(run["folder"] / f"{name}.npz") as arrays:
            images, texts = (
                arrays[part] / np.linalg.norm(arrays[part], axis=1)[:, None]
                for part in ("images", "texts")
            )
        scores = images @ texts.T
        right = labels[:, None] == np.arange(scores.shape[1])
        for way, s, r in (
            ("image→text", scores, right),
            ("text→image", scores.T, right.T),
        ):
            best = np.where(r, s, -np.inf).max(1)
            # A wrong answer that scores as well stands before the right one.
            before = (~r & (s >= best[:, None])).sum(1)
            found[name, way] = 1 + before
    return found


def recalls(runs, data):
    """Return hits of shape `(seeds, queries)` for each metric."""
    all_ranks = [ranks(run, data) for run in runs]
    return {
        (*key, depth): np.array([r[key] <= depth for r in all_ranks])
        for key in all_ranks[0]
        for depth in DEPTHS
    }


def interval(differences):
    """Bootstrap the mean over queries of `(seeds, queries)` differences."""
    means = differences.mean(0)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(means), (DRAWS, len(means)))
    return np.percentile(means[draws].mean(1), (2.5, 97.5))


def mean_recall(hits):
    return 100 * np.mean([h.mean() for h in hits.values()])


def table(columns, data, baseline):
    """Print recall of each side, and its distance from one of them."""
    hits = {name: recalls(runs, data) for name, runs in columns.items()}
    lines = ["| | steps | CPU s |"]
    keys = list(hits[baseline])
    for name, way, depth in keys:
        lines[0] += f" {name.removeprefix('test_')}, {way} @{depth} |"
    lines[0] += " mean |"
    lines.append("|---|" + "---:|" * (len(keys) + 3))
    for name, runs in columns.items():
        steps = np.mean([run["steps"] for run in runs])
        seconds = np.mean([run["seconds"] for run in runs])
        row = f"| {name} | {steps:.0f} | {seconds:.0f} |"
        for key in keys:
            row += f" {100 * hits[name][key].mean():.1f}"
            if name != baseline and len(columns) < 4:
                low, high = 100 * interval(
                    hits[name][key].astype(float) - hits[baseline][key]
                )
                row += f" ({low:+.1f} to {high:+.1f})"
            row += " |"
        lines.append(row + f" {mean_recall(hits[name]):.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--data", help="folder of train and test_…")
    parser.add_argument("--scenes", type=int, help="draw that many scenes")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cpu-seconds", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=turns.THREADS)
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--ablate", nargs="*", help="changes, by name, or all")
    parser.add_argument("--sides", nargs="+", default=["ours", "theirs"])
    parser.add_argument(
        "--cache",
        default=os.path.expanduser("~/.cache/align_keras/learning"),
        help="where data and finished runs are kept",
    )
    args = parser.parse_args()
    if args.work:
        run_side(json.loads(args.work))
        return
    if args.scenes:
        folder = Path(args.cache) / f"scenes-{args.scenes}"
        args.data = draw_scenes(folder, args.scenes)
    if args.data is None or (args.steps is None) == (args.cpu_seconds is None):
        parser.error(
            "give --data or --scenes, and one of --steps and --cpu-seconds"
        )
    seeds = range(args.seeds)
    if args.ablate is not None:
        chosen = args.ablate or list(ABLATIONS)
        columns = {
            name: [run("ours", seed, args, ABLATIONS[name]) for seed in seeds]
            for name in chosen
        }
        tables.publish(
            args,
            f"{args.seeds} seeds, one change at a time",
            table(columns, args.data, chosen[0]),
            "learning-ablation",
        )
        return
    names = {"ours": "align_keras, `small`", "theirs": "open_clip"}
    columns = {
        names[side]: [run(side, seed, args) for seed in seeds]
        for side in args.sides
    }
    tables.publish(
        args,
        f"Recall in %, mean of {args.seeds} seeds; in parentheses what the "
        "first side has more or less, 95 %",
        table(columns, args.data, names[args.sides[-1]]),
        "learning",
    )


if __name__ == "__main__":
    main()
