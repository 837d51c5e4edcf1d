"""Train ALIGN on a folder of photos with captions, measure it, and export it.

    python train_on_your_photos.py photos --output my_align

The folder holds a caption file with a row for each photo: `captions.csv` with
the columns `image` (path within the folder) and `caption`. Some photos are set
aside to measure on. Started again, the script goes on where it stopped.
"""

import argparse
from pathlib import Path

from align_keras import AlignDualEncoder
from align_keras.data import pack
from align_keras.evaluation import evaluate_retrieval
from align_keras.training import Recipe
from align_keras.training import train


def main(arguments=None):
    """Run all four parts; returns the metrics."""
    args = parse(arguments)

    # 1. Pictures and captions to TFRecord files.
    captions = args.captions or args.photos / "captions.csv"
    packed = args.output / f"packed-{args.hold_out}"
    print(f"Packing {args.photos} with {captions}")
    manifest = pack(
        args.photos,
        packed,
        captions=captions,
        records_per_shard=args.hold_out,
        progress=True,
    )
    print(f"  {manifest['records']} photos, {manifest['captions']} captions")
    for reason, count in manifest["skipped_reasons"].items():
        print(f"  left out: {count} {reason}")
    # The first file is set aside: shuffle the rows of a caption file that is
    # sorted by something that matters.
    files = sorted(map(str, packed.glob("*.tfrecord")))
    if len(files) < 2:
        raise SystemExit(
            f"All {manifest['records']} photos would be set aside to measure "
            "on: choose a smaller --hold-out."
        )
    held_out, *training = files

    # 2. Training. For a large batch, look at the recipes that ship.
    recipe = Recipe(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 10,
        optimizer="adamw",
        image_size=args.image_size,
        # A little larger, so that training sees random crops.
        resize_size=round(args.image_size * 1.2),
        initial_temperature=0.1,
        vocabulary_size=20_000,
        checkpoint_every=args.checkpoint_every,
    )
    print(f"Training {args.preset} for {recipe.steps} steps")
    run = train(
        args.preset,
        recipe,
        data=training,
        workdir=args.output / "run",
        validation_data=held_out,
    )

    # 3. The best model, on the photos that training did not see.
    model = AlignDualEncoder.from_preset(run["model"])
    metrics = evaluate_retrieval(model, held_out)
    print(f"Retrieval among {metrics['images']} photos set aside")
    for name in ("image_to_text_recall@1", "text_to_image_recall@1"):
        chance = metrics[f"chance_{name}"]
        print(f"  {name}: {metrics[name]:.1%} (chance {chance:.1%})")

    # 4. A SavedModel; serve_saved_model.py shows how to ask it.
    model.export(args.output / "saved_model")
    print(f"Exported to {args.output / 'saved_model'}")
    return metrics


def parse(arguments):
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--captions", type=Path, help="PHOTOS/captions.csv")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="align_b0_bert_mini")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--hold-out", type=int, default=500, help="photos")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
