"""Time of a training step, compared with open_clip and timm.

    python benchmarks/open_clip_step.py
    taskset -c 0 python benchmarks/open_clip_step.py
    python benchmarks/open_clip_step.py --full

Both sides train an EfficientNet-B0 and a text transformer of four layers of
width 256 with AdamW, on the same number of pairs, pixels and tokens, and
open_clip's vocabulary. Ours is as the recipe `small` trains it: like open_clip,
without dropout, and with the last layer computed for all tokens. The second
command uses one thread.

The paper keeps alt-texts of 3 to 20 words: here, texts have 6 to 27 tokens, and
are padded to 64. open_clip computes all 64, and ours 32, the smallest multiple
of eight that holds them. With `--full`, texts fill all 64.
"""

import networks
import numpy as np
import tables
import turns

# Steps of a turn: several, because `fit` has a cost at its start and end.
STEPS = 2
VOCABULARY_SIZE = 49_408


def ours(batch_size, image_size, full):
    """Prepare steps of `fit`."""
    import keras

    from align_keras import AlignDualEncoder

    keras.utils.set_random_seed(0)
    model = AlignDualEncoder.from_preset(
        networks.CASES["b0"][0],
        load_weights=False,
        image_encoder={"dropout": 0.0},
        text_encoder={"vocabulary_size": VOCABULARY_SIZE, "dropout": 0.0},
        text_pooling="average",
    )
    model.compile(keras.optimizers.AdamW(5e-4, weight_decay=0.2))
    batch = networks.batch_of(batch_size, image_size)
    batch["token_ids"] %= VOCABULARY_SIZE
    if not full:
        lengths = np.random.default_rng(1).integers(6, 28, (batch_size, 1))
        batch["padding_mask"][:] = np.arange(networks.TOKENS) < lengths
        batch["token_ids"] *= batch["padding_mask"]
    data = networks.over_and_over(batch)

    def run():
        model.fit(data, steps_per_epoch=STEPS, verbose=0)

    return run


def theirs(batch_size, image_size):
    """Prepare steps of open_clip."""
    import torch

    model = networks.open_clip_model(image_size, networks.TOKENS).train()
    import open_clip

    compare, optimizer = (
        open_clip.ClipLoss(),
        networks.open_clip_optimizer(model),
    )
    batch = networks.torch_batch(batch_size, image_size)
    networks.set_layout(model, batch, channels_last=True)
    texts = batch["input_ids"] % VOCABULARY_SIZE

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            compare(*model(batch["pixel_values"], texts)[:3]).backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6)

    return run


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-sizes", type=int, nargs="+")
    parser.add_argument(
        "--full", action="store_true", help="texts of 64 tokens"
    )
    args = parser.parse_args()
    text = tables.HEAD
    for size in args.image_sizes or (64, 128, 289):
        work = {"batch_size": args.batch, "image_size": size}
        names = [
            f"{side}, {size} pixels" for side in ("align_keras", "open_clip")
        ]
        sides = [
            turns.Side(
                names[0], "open_clip_step:ours", {**work, "full": args.full}
            ),
            turns.Side(names[1], "open_clip_step:theirs", work),
        ]
        times = turns.in_turns(sides, args.rounds)
        text += tables.rows(times, names[:1], 1, "s", best=False)
    tables.publish(
        args,
        f"{STEPS} training steps of {args.batch} pairs, "
        f"{'texts of 64 tokens, ' if args.full else ''}"
        f"threads: {turns.THREADS}:",
        text,
        f"open-clip-step{'-full' if args.full else ''}-{turns.THREADS}",
    )


if __name__ == "__main__":
    main()
