"""A training step on one GPU in bfloat16, beside transformers and open_clip.

    python benchmarks/gpu.py --case b7 --batch 128 --peak 989
    python benchmarks/gpu.py --case b7 --largest

It compares our JAX backend, transformers' AlignModel under `torch.compile`, and
open_clip with timm's EfficientNet and a text transformer of the same size. Each
runs in its own process, which has the GPU to itself; all run one after the
other, in several rounds. `--microbatch` adds our step with gradient caching.
`--largest` doubles the batch of each until it does not fit.
"""

import os
import statistics

import networks
import tables
import training_step
import turns

STEPS = 8
# The towers of open_clip: timm's name for the EfficientNet.
TIMM = {
    "tiny": "tf_efficientnet_b0",
    "b0": "tf_efficientnet_b0",
    "b7": "tf_efficientnet_b7",
}


def ours(case, batch_size, image_size, microbatch=None):
    """Prepare steps of `fit` on the JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import tensorflow as tf

    from align_keras import Lamb

    # The input pipeline must not take memory of the GPU.
    tf.config.set_visible_devices([], "GPU")
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = networks.keras_model(case)
    model.compile(Lamb(1e-3, weight_decay=1e-5), microbatch_size=microbatch)
    batch = networks.batch_of(batch_size, image_size)
    data = networks.over_and_over(batch)
    return lambda: model.fit(data, steps_per_epoch=STEPS, verbose=0)


def transformers(case, batch_size, image_size):
    """Prepare steps of transformers' AlignModel."""
    model = networks.torch_model(case, image_size)

    def loss(call, batch):
        return call(**batch, return_loss=True).loss

    return _torch_steps(model, loss, batch_size, image_size)


def open_clip(case, batch_size, image_size):
    """Prepare steps of open_clip, with its loss."""
    import open_clip

    layers, heads, dim = networks.CASES[case][2]
    model = open_clip.model.CustomTextCLIP(
        embed_dim=networks.CASES[case][1][2],
        vision_cfg={
            "timm_model_name": TIMM[case],
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": image_size,
        },
        text_cfg={
            "context_length": networks.TOKENS,
            "vocab_size": networks.VOCABULARY_SIZE,
            "width": dim,
            "heads": heads,
            "layers": layers,
        },
    )
    compare = open_clip.ClipLoss()

    def loss(call, batch):
        images, texts, scale, *_ = call(
            batch["pixel_values"], batch["input_ids"]
        )
        return compare(images, texts, scale)

    return _torch_steps(model, loss, batch_size, image_size)


def _torch_steps(model, loss, batch_size, image_size):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = model.to(device).train()
    batch = networks.torch_batch(batch_size, image_size, device)
    networks.set_layout(model, batch, channels_last=True)
    call = torch.compile(model)
    lamb = training_step.Lamb(model.named_parameters())

    def run():
        for _ in range(STEPS):
            with torch.autocast(device, torch.bfloat16):
                value = loss(call, batch)
            value.backward()
            lamb.step()
        value.item()

    return run


def flops(case, image_size):
    """Count the operations of a step for one pair: three forward passes."""
    os.environ["KERAS_BACKEND"] = "jax"
    model = networks.keras_model(case)
    macs = model.image_encoder.count_macs(image_size)
    macs += model.text_encoder.count_macs(networks.TOKENS)
    return 3 * 2 * macs


def make_side(args, name, batch):
    work = {
        "case": args.case,
        "batch_size": batch,
        "image_size": args.image_size,
    }
    function = "ours" if name.startswith("align_keras") else name
    if "microbatches" in name:
        work["microbatch"] = args.microbatch
    return turns.Side(
        name,
        f"gpu:{function}",
        work,
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"},
    )


def measure(args, name, batch):
    """Return the seconds of a step, measured in its own process."""
    side = make_side(args, name, batch)
    try:
        for _ in range(3):
            side.take_turn()
    finally:
        side.close()
    # The first turn includes compilation.
    return statistics.median(side.seconds[1:]) / STEPS


def largest_batch(args, name):
    """Double the batch until a step fails; return the largest that fits."""
    batch, fits = args.batch, None
    while args.limit is None or batch <= args.limit:
        try:
            measure(args, name, batch)
        except RuntimeError:
            break
        batch, fits = 2 * batch, batch
    return fits


def main():
    parser = tables.parser(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--case", choices=networks.CASES, default="b7")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=289)
    parser.add_argument("--microbatch", type=int)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--limit", type=int, help="greatest batch to try")
    parser.add_argument(
        "--peak", type=float, help="of the device, in TFLOP/s in bfloat16"
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["align_keras", "transformers", "open_clip"],
    )
    args = parser.parse_args()
    names = list(args.sides)
    if args.microbatch:
        names.append(f"align_keras, microbatches of {args.microbatch}")
    if args.largest:
        text = "| | largest batch |\n|---|---:|\n"
        for name in names:
            text += f"| {name} | {largest_batch(args, name)} |\n"
        tables.publish(args, "Batches that fit:", text, "gpu-largest")
        return
    seconds = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            seconds[name].append(measure(args, name, args.batch))
    work = args.batch * flops(args.case, args.image_size)
    text = "| | images/s | spread | TFLOP/s | share of the peak |\n"
    text += "|---|---:|---:|---:|---:|\n"
    for name, values in seconds.items():
        median = statistics.median(values)
        rate = work / median / 1e12
        share = f"{100 * rate / args.peak:.1f} %" if args.peak else ""
        text += (
            f"| {name} | {args.batch / median:.4g} | "
            f"{100 * turns.spread(values):.0f} % | {rate:.3g} | {share} |\n"
        )
    tables.publish(args, f"{args.batch} pairs:", text, "gpu-step")


if __name__ == "__main__":
    main()
