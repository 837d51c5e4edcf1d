"""Time and memory of a loss and its gradients, at once and in tiles.

    python benchmarks/loss.py --backend jax --output loss.png
    python benchmarks/loss.py --smoothing 0 --open-clip

`--open-clip` adds the loss of open_clip (PyTorch) to the comparison.

Each case runs in its own process, and the two variants take turns; the fastest
of the timed steps counts. The memory is the peak growth of the process beyond
the embeddings, including the gradients.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("tensorflow", "tensorflow-xla", "jax")
FORMS = {"at once": None, "tiled": 128}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument("--loss", choices=("contrastive", "sigmoid"))
    parser.set_defaults(loss="contrastive")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768]
    )
    parser.add_argument(
        "--largest-at-once",
        type=int,
        default=8192,
        help="above this batch, only the tiled form runs",
    )
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--open-clip", action="store_true")
    parser.add_argument("--output", type=Path, help="PNG of how both grow")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.open_clip and (args.smoothing or args.loss == "sigmoid"):
        parser.error("open_clip's loss is contrastive, with --smoothing 0")
    return args


def memory(field):
    """Return this process' memory in MiB: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"There is no field {field} in /proc/self/status")


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def make_loss(args, tile_size):
    from align_keras import ContrastiveLoss
    from align_keras import SigmoidLoss

    if args.loss == "sigmoid":
        return SigmoidLoss(tile_size=tile_size)
    return ContrastiveLoss(args.smoothing, tile_size=tile_size)


def tensorflow_step(loss, rows, devices, jit_compile):
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [d.name for d in tf.config.list_logical_devices("CPU")]
        )
    size = len(rows[0]) // devices

    def part(array):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                array[context.replica_id_in_sync_group * size :][:size]
            )
        )

    def gradients(images, texts):
        temperature = tf.constant(0.1)
        with tf.GradientTape() as tape:
            tape.watch((images, texts, temperature))
            value = loss(images, texts, temperature=temperature)
        sources = images, texts, temperature
        return value, tape.gradient(value, sources)

    @tf.function(jit_compile=jit_compile)
    def step(images, texts):
        return strategy.run(gradients, args=(images, texts))

    def run(images, texts):
        value, gradients = step(images, texts)
        value = strategy.reduce("SUM", value, axis=None)
        return float(value), gradients

    inputs = tuple(part(array) for array in rows)
    step.get_concrete_function(*inputs)
    return lambda: run(*inputs)


def jax_step(loss, rows, devices):
    import jax
    import keras

    if devices > 1:
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    split = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("batch")
    )
    rows = [jax.device_put(array, split) for array in rows]

    def value(images, texts, temperature):
        return loss(images, texts, temperature=temperature)

    step = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
    step = step.lower(*rows, 0.1).compile()

    def run():
        value, gradients = jax.block_until_ready(step(*rows, 0.1))
        return float(value), gradients

    return run


def open_clip_step(rows):
    import importlib.util

    import torch

    # Importing the whole package needs torchvision.
    package = importlib.util.find_spec("open_clip")
    path = Path(package.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.ClipLoss()
    leaves = [torch.tensor(array, requires_grad=True) for array in rows]
    scale = torch.tensor(10.0, requires_grad=True)

    def run():
        value = loss(*leaves, scale)
        return value.item(), torch.autograd.grad(value, (*leaves, scale))

    return run


def run_case(args):
    """Print the metrics of one batch size and variant as JSON."""
    size, form = args.case.split(":")
    backend = args.backend.partition("-")[0]
    os.environ["KERAS_BACKEND"] = backend
    if args.devices > 1:
        flag = f"--xla_force_host_platform_device_count={args.devices}"
        os.environ["XLA_FLAGS"] = flag
    import numpy as np

    if backend == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * args.devices
        )
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(2):
        array = rng.standard_normal((int(size), args.dim), "float32")
        array /= np.linalg.norm(array, axis=1, keepdims=True)
        rows.append(array)
    loss = make_loss(args, FORMS.get(form))
    if form == "open_clip":
        step = open_clip_step(rows)
    elif backend == "jax":
        step = jax_step(loss, rows, args.devices)
    else:
        jit_compile = args.backend.endswith("xla")
        step = tensorflow_step(loss, rows, args.devices, jit_compile)
    before = memory("VmRSS")
    forget_peak()
    start = time.perf_counter()
    value, gradients = step()
    seconds = [time.perf_counter() - start]
    peak = memory("VmHWM") - before
    del gradients
    # The first step may compile, which matters little if steps are long.
    while sum(seconds) < 30 and len(seconds) < 6:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    metrics = {"loss": value, "mebibytes": peak, "seconds": min(seconds)}
    print(json.dumps(metrics))


def measure(args, size, form):
    command = [sys.executable, __file__, *sys.argv[1:]]
    result = subprocess.run(
        [*command, "--case", f"{size}:{form}"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def measure_all(args):
    names = [*FORMS, "open_clip"] if args.open_clip else FORMS
    results = {form: {} for form in names}
    for size in args.sizes:
        forms = [
            form
            for form in names
            if form == "tiled" or size <= args.largest_at_once
        ]
        for _ in range(args.rounds):
            for form in forms:
                case = measure(args, size, form)
                best = results[form].setdefault(size, case)
                best["seconds"] = min(best["seconds"], case["seconds"])
                best["mebibytes"] = max(best["mebibytes"], case["mebibytes"])
        for form in forms:
            case = results[form][size]
            line = (
                f"{args.backend:<14} batch {size:>6} {form:<10}"
                f"{case['seconds']:>9.3f} s {case['mebibytes']:>8.0f} MiB"
                f"  loss {case['loss']:.6f}"
            )
            if form != "at once" and len(forms) > 1:
                ratio = case["seconds"] / results["at once"][size]["seconds"]
                line += f"  {ratio:.2f} times the time at once"
            print(line, flush=True)
    return results


def plot(args, results):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, field in zip(axes, ("mebibytes", "seconds"), strict=True):
        for form, cases in results.items():
            values = [case[field] for case in cases.values()]
            axis.loglog(list(cases), values, "o-", base=2, label=form)
        axis.set_xlabel("global batch")
        axis.set_xticks(args.sizes, [str(size) for size in args.sizes])
    axes[0].set_ylabel("peak memory above the embeddings (MiB)")
    axes[1].set_ylabel("loss and gradients (seconds)")
    axes[0].legend()
    figure.suptitle(f"{args.loss} loss, width {args.dim}, {args.backend}")
    figure.tight_layout()
    figure.savefig(args.output)


def main():
    args = parse()
    if args.case:
        run_case(args)
        return
    results = measure_all(args)
    if args.output:
        plot(args, results)


if __name__ == "__main__":
    main()
