"""Peak memory and time of a training step as the batch grows.

    python benchmarks/memory.py --output memory.png

Compares the plain step (dense) with a tiled loss, rematerialised blocks and
microbatches (gradient caching). Each peak of memory is measured in its own
process, and includes Python and TensorFlow. Times are measured in one process,
in which the dense step of the smallest batch and the steps of the given batch
take turns. Processor time is printed as well, since it varies less on a busy
machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import networks

# What each variant changes: the tile size of the loss, and `compile`.
FORMS = {
    "dense": (None, {}),
    "tiled": (128, {}),
    "rematerialised": (None, {"remat": True}),
    "microbatches": ("auto", {"microbatch_size": True}),
}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("tensorflow", "jax"))
    parser.set_defaults(backend="tensorflow")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--depth", type=float, default=1.0)
    parser.add_argument("--microbatch", type=int, default=64)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096]
    )
    parser.add_argument(
        "--largest-whole",
        type=int,
        default=1024,
        help="above this batch, only microbatches run",
    )
    parser.add_argument(
        "--timed",
        type=int,
        nargs="*",
        default=[256, 1024],
        help="batches whose steps are timed",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="PNG of how memory grows")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def peak():
    """Return the peak memory of this process so far, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise ValueError("There is no field VmHWM in /proc/self/status")


class Trainee:
    """A model and batches of one size, for training step by step."""

    def __init__(self, args, form, size):
        import keras
        import tensorflow as tf

        from align_keras import AlignDualEncoder
        from align_keras import BertTextEncoder
        from align_keras import ContrastiveLoss
        from align_keras import EfficientNetBackbone

        tile_size, options = FORMS[form]
        options = dict(options)
        if "microbatch_size" in options:
            options["microbatch_size"] = args.microbatch
        keras.utils.set_random_seed(0)
        self.model = AlignDualEncoder(
            EfficientNetBackbone(
                args.width,
                args.depth,
                batch_norm="ghost",
                virtual_batch_size=16,
            ),
            BertTextEncoder(1000, 2, 2, 128, 512),
        )
        self.model.compile(
            keras.optimizers.SGD(0.01),
            loss=ContrastiveLoss(tile_size=tile_size),
            **options,
        )
        shape = (size, args.image_size, args.image_size, 3)
        tokens = tf.random.uniform((size, 16), 5, 1000, "int32")
        self.batches = networks.over_and_over(
            {
                "images": tf.random.uniform(shape, -1, 1),
                "token_ids": tokens,
                "padding_mask": tf.ones_like(tokens),
            }
        )

    def train(self, steps):
        """Train; return the wall and processor seconds."""
        start = time.perf_counter(), time.process_time()
        self.model.fit(self.batches, steps_per_epoch=steps, verbose=0)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def measure_memory(args, form, size):
    trainee = Trainee(args, form, size)
    before = peak()
    trainee.train(2)
    return {"before": before, "peak": peak()}


def measure_time(args, forms, size):
    """Time the steps of all in turns; return median times per example."""
    smallest = args.sizes[0]
    sides = {
        f"dense, {smallest}": (
            Trainee(args, "dense", smallest),
            size // smallest,
        ),
        **{form: (Trainee(args, form, size), 1) for form in forms.split("+")},
    }
    for trainee, _ in sides.values():
        trainee.train(2)
    seconds = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, (trainee, steps) in sides.items():
            seconds[side].append(trainee.train(steps))
    return {
        side: [statistics.median(t) / size for t in zip(*times, strict=True)]
        for side, times in seconds.items()
    }


def forms_of(args, size):
    """Return the variants that have enough memory for a batch."""
    return list(FORMS) if size <= args.largest_whole else ["microbatches"]


def run_case(args):
    """Print the metrics of a batch size as JSON."""
    os.environ["KERAS_BACKEND"] = args.backend
    kind, form, size = args.case.split(":")
    measure = {"memory": measure_memory, "time": measure_time}[kind]
    print(json.dumps(measure(args, form, int(size))))


def measure(kind, form, size):
    result = subprocess.run(
        [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--case",
            f"{kind}:{form}:{size}",
        ],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def plot(args, peaks):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4))
    # Curves of equal memory overlap, so earlier ones are drawn wider.
    for number, (form, cases) in enumerate(peaks.items()):
        width = 2 * (len(peaks) - number)
        axis.plot(
            list(cases),
            list(cases.values()),
            "o-",
            lw=width,
            ms=2 + 2 * width,
            label=form,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(args.sizes, [str(size) for size in args.sizes])
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("batch")
    axis.set_ylabel("peak memory of the process (MiB)")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(args.output)


def main():
    args = parse()
    if args.case:
        run_case(args)
        return
    peaks = {form: {} for form in FORMS}
    for size in args.sizes:
        for form in forms_of(args, size):
            metrics = measure("memory", form, size)
            peaks[form][size] = metrics["peak"]
            dense, same = (
                metrics["peak"] / peaks[other][args.sizes[0]]
                for other in ("dense", form)
            )
            print(
                f"batch {size:>6} {form:<15}{metrics['peak']:>7.0f} MiB, "
                f"{metrics['before']:.0f} before the first step; "
                f"{dense:.2f} times the smallest dense step, "
                f"{same:.2f} times the smallest of this form",
                flush=True,
            )
    for size in args.timed:
        times = measure("time", "+".join(forms_of(args, size)), size)
        reference = next(iter(times.values()))
        for side, (seconds, processor) in times.items():
            print(
                f"batch {size:>6} {side:<15}{1e3 * seconds:>8.2f} ms per "
                f"example, {1e3 * processor:.2f} ms of processor time; "
                f"{seconds / reference[0]:.2f} and "
                f"{processor / reference[1]:.2f} times the smallest dense step",
                flush=True,
            )
    if args.output:
        plot(args, peaks)


if __name__ == "__main__":
    main()
