"""What a model learns from pairs chosen by a model of the same data.

    python benchmarks/flywheel.py --workdir run --write --plot docs/flywheel.png

Scenes are drawn with true captions, and a share of the captions is then
exchanged, so that it is known which pairs are wrong. The script follows the
tutorial "A cleaner data set from your own model": `curate` by the paper's
rules, train, score, `curate` again by the scores for several values of
`keep_share`, and train from fresh weights with the same recipe and number of
steps. All models are measured on held-out scenes with clean captions, each of
which shows a combination that is not in the training data. With `--bound`, so
is a model trained only on the true pairs. Differences are paired. Each training
has its own process. Runs resume.
"""

import concurrent.futures
import csv
import dataclasses
import itertools
import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import tables

RULES = Path(__file__).resolve().parents[1] / "examples" / "two_passes.yaml"
CURVE = np.arange(0.1, 1.01, 0.05)


# === Data ===


def draw(work, args, seed):
    """Draw scenes; return the folder and the wrong rows of its captions."""
    from align_keras.quickstart.scenes import draw_scenes

    folder = work / "photos"
    truth = work / "wrong.json"
    if not truth.is_file():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        drawn = draw_scenes(2 * args.scenes, seed)
        drawn = (record for record in drawn if not record["noise"])
        rows = []
        for record in itertools.islice(drawn, args.scenes):
            name = f"images/{record['key']}.jpg"
            (folder / name).write_bytes(record["image"])
            rows.append([name, record["captions"][0]])
        wrong = exchange(rows, args.wrong, seed)
        with open(folder / "captions.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *rows])
        truth.write_text(json.dumps(wrong))
    return folder, set(json.loads(truth.read_text()))


def exchange(rows, share, seed):
    """Exchange the captions of some images; return the images' names."""
    rng = random.Random(seed)
    chosen = rng.sample(rows, round(share * len(rows)))
    captions = [caption for _, caption in chosen]
    while any(row[1] == new for row, new in zip(chosen, captions, strict=True)):
        rng.shuffle(captions)
    for row, caption in zip(chosen, captions, strict=True):
        row[1] = caption
    return [name for name, _ in chosen]


# === The cycle ===


@dataclasses.dataclass
class Variant:
    """A set of pairs and the model that was trained on it."""

    name: str
    images: list
    wrong: int
    result: object
    seconds: float


class Ring:
    """The cycle of curation and training on one draw of the data."""

    def __init__(self, work, args, seed):
        from align_keras.quickstart.scenes import write_scenes

        self.work, self.args, self.seed = work, args, seed
        self.photos, self.wrong = draw(work, args, seed)
        self.test = work / "test"
        if not (self.test / "captions.csv").is_file():
            write_scenes(self.test, args.evaluation, seed, "evaluation")

    def curate(self, name, config, scores=()):
        """Curate the raw pairs; return the directory and the kept images."""
        from align_keras.curation import curate

        output = self.work / name
        curate(
            [self.photos / "captions.csv"],
            output,
            config,
            test_images=[self.test],
            image_folder=self.photos,
            scores=scores,
            stages=self.work / "stages",
        )
        return output

    def learn(self, name, captions):
        """Pack pairs, train on them from fresh weights, and measure."""
        from align_keras.data import pack
        from align_keras.data import read_captions
        from align_keras.evaluation.results import Result

        images = list(read_captions(captions))
        wrong = sum(image in self.wrong for image in images)
        folder = self.work / name.replace(" ", "-")
        if not (folder / "result.json").is_file():
            pack(self.photos, folder / "packed", captions)
            in_process(learn, folder, self.test, self.seed, self.args)
        result = Result.load(folder / "result.json")
        seconds = json.loads((folder / "seconds.json").read_text())
        return Variant(name, images, wrong, result, seconds)

    def run(self):
        """Run the cycle once; return the variants and the scores."""
        from align_keras.curation import load_config
        from align_keras.data import read_captions
        from align_keras.embedding import score

        config = load_config(RULES)
        clean = self.curate("clean", config)
        first = self.learn("first", clean)
        scores = self.work / "scores"
        folder = self.work / "first"
        model = folder / "run" / "model"
        in_process(score, folder / "packed", scores, model)
        variants = [first]
        for share in self.args.keep:
            rules = keeping(config, share)
            chosen = self.curate(f"clean-{share:g}", rules, [scores])
            variants.append(self.learn(f"keep_share {share:g}", chosen))
        if not self.args.bound:
            return variants, scores
        true = self.work / "true.csv"
        with open(true, "w", newline="") as file:
            rows = [
                (image, caption)
                for image, captions in read_captions(clean).items()
                for caption in captions
                if image not in self.wrong
            ]
            csv.writer(file).writerows([("image", "caption"), *rows])
        variants.append(self.learn("true pairs alone", true))
        return variants, scores

    def curve(self, scores):
        """Return the share of wrong captions among the best pairs by score."""
        import pyarrow.parquet as parquet

        files = sorted(scores.glob("*.parquet"))
        table = parquet.read_table(files, columns=["key", "score"])
        wrong = {name.removesuffix(".jpg") for name in self.wrong}
        wrong = np.array([k in wrong for k in table["key"].to_pylist()])
        order = np.argsort(-table["score"].to_numpy(), kind="stable")
        counts = np.floor(CURVE * len(wrong) + 1e-9).astype(int)
        return np.cumsum(wrong[order])[counts - 1] / counts


def learn(folder, test, seed, args):
    """Train on packed pairs and measure the model on a folder of images."""
    from align_keras import AlignDualEncoder
    from align_keras.evaluation import measure_retrieval
    from align_keras.quickstart.model import quickstart_model
    from align_keras.training import train

    start = time.process_time()
    trained = train(
        quickstart_model,
        "quickstart",
        str(folder / "packed"),
        folder / "run",
        strategy="one-device",
        seed=seed,
        steps=args.steps,
        warmup_steps=max(1, args.steps // 10),
        checkpoint_every=args.steps,
        batch_size=args.batch_size,
        verbose=False,
        log=(),
    )
    seconds = time.process_time() - start
    model = AlignDualEncoder.from_preset(trained["model"])
    result = measure_retrieval(model, str(test), progress=False)
    (folder / "seconds.json").write_text(json.dumps(seconds))
    result.save(folder / "result.json")


def in_process(function, *arguments):
    """Call a function in its own process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(function, *arguments).result()


def keeping(config, share):
    """Return the rules with another `keep_share` for `similarity`."""
    rules = [
        dataclasses.replace(
            rule, parameters={**rule.parameters, "keep_share": share}
        )
        if rule.kind == "similarity"
        else rule
        for rule in config.rules
    ]
    return dataclasses.replace(config, rules=tuple(rules))


# === Results ===


def table(found):
    """Format a row for each set of pairs of each draw."""
    lines = [
        "| draw | pairs for training | number | wrong, % | mean recall, % "
        "| against the first, 95 % | CPU s |\n",
        "|---:|---|---:|---:|---:|---|---:|\n",
    ]
    for seed, (variants, ring, _) in found.items():
        rows = ring.args.scenes, 100 * len(ring.wrong) / ring.args.scenes
        lines.append(
            f"| {seed} | as drawn | {rows[0]:,} | {rows[1]:.1f} | | | |\n"
        )
        first = variants[0]
        for variant in variants:
            against = ""
            if variant is not first:
                paired = difference(first, variant)
                against = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*paired)
            lines.append(
                f"| {seed} | {variant.name} | {len(variant.images):,} "
                f"| {100 * variant.wrong / len(variant.images):.1f} "
                f"| {100 * variant.result['mean_recall']:.1f} | {against} "
                f"| {variant.seconds:.0f} |\n"
            )
    return "".join(lines)


def difference(first, second):
    """Return the paired difference of mean recall with its interval, in %."""
    from align_keras.evaluation.compare import compare_results

    rows = compare_results(first.result, second.result)["metrics"]
    row = next(row for row in rows if row["name"] == "mean_recall")
    return [100 * row[name] for name in ("difference", "low", "high")]


def plot(found, args, path):
    """Plot mean recall and wrong captions over the share that is kept."""
    from align_keras.io.plots import pyplot
    from align_keras.io.plots import save_plot

    plt = pyplot(extra="evaluation")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.2), layout="constrained"
    )
    for seed, (variants, ring, curve) in found.items():
        (line,) = left.plot(CURVE, 100 * curve, label=f"draw {seed}")
        first, *others = variants
        bound = others.pop() if ring.args.bound else None
        paired = np.array([difference(first, v) for v in others])
        values, low, high = paired.T
        places = np.array(args.keep) + 0.01 * (seed - (len(found) - 1) / 2)
        color = line.get_color()
        right.errorbar(
            places,
            values,
            (values - low, high - values),
            marker="o",
            capsize=3,
            color=color,
        )
        if bound:
            limit = difference(first, bound)[0]
            right.axhline(limit, color=color, linestyle=":", linewidth=1)
    best = np.maximum(0, 1 - (1 - curve[-1]) / CURVE)
    left.plot(CURVE, 100 * best, "k:", linewidth=1, label="the least there is")
    left.axhline(100 * curve[-1], color="gray", linewidth=1)
    left.set_ylabel("wrong among kept pairs, %")
    left.set_ylim(bottom=0)
    left.legend(fontsize="small")
    right.axhline(0, color="gray", linewidth=1)
    right.set_ylabel("mean recall, second - first, points")
    for axes in (left, right):
        axes.set_xlabel("keep_share")
        axes.set_xlim(0.05, 1.05)
    save_plot(plt, figure, path, dpi=90)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--wrong", type=float, default=0.4, metavar="SHARE")
    parser.add_argument("--evaluation", type=int, default=800, metavar="N")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.4, 0.6, 0.8]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--bound",
        action="store_true",
        help="train on the true pairs alone, too (dotted in the plot)",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    found = {}
    for seed in args.seeds:
        ring = Ring(args.workdir / f"draw-{seed}", args, seed)
        variants, scores = ring.run()
        found[seed] = variants, ring, ring.curve(scores)
        print(f"Draw {seed}:\n{table(found)}", flush=True)
    if args.plot:
        plot(found, args, args.plot)
    title = (
        f"{args.scenes:,} scenes, {args.wrong:.0%} of the captions exchanged; "
        f"{args.steps} steps of {args.batch_size} pairs; mean recall (@1, 5, "
        f"10, both ways) on {args.evaluation} scenes, chance "
        f"{100 * variants[0].result['chance_mean_recall']:.1f} %:"
    )
    tables.publish(args, title, table(found), "flywheel")


if __name__ == "__main__":
    main()
