"""Train ALIGN on a folder of photos, evaluate it, and export it.

    python train_on_your_photos.py photos --output my_align

The folder contains a caption file with a row for each photo: `captions.csv`
with the columns `image` (path within the folder) and `caption`. Some photos are
held out for evaluation. If you start the script again, it resumes where it
stopped.
"""

import argparse
from pathlib import Path

from align_keras import AlignDualEncoder
from align_keras.training import Recipe
from align_keras.training import train


def main(arguments=None):
    """Train, evaluate and export a model, and return the metrics."""
    args = parse(arguments)

    # For large batches, start from one of the built-in recipes.
    recipe = Recipe(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 10,
        optimizer="adamw",
        image_size=args.image_size,
        # A little larger, so that training uses random crops.
        resize_size=round(args.image_size * 1.2),
        initial_temperature=0.1,
        vocabulary_size=20_000,
        checkpoint_every=args.checkpoint_every,
    )
    # This packs the photos into TFRecord files, holds some out, learns a
    # vocabulary from the captions, and evaluates at each checkpoint.
    run = train(
        args.preset,
        recipe,
        data=args.photos,
        workdir=args.output,
        hold_out=args.hold_out,
    )

    # Metrics of the best model on the held-out photos, if there are any.
    metrics = run["best"]["metrics"]
    for name in ("image_to_text_recall@5", "text_to_image_recall@5"):
        if name in metrics:
            chance = metrics[f"chance_{name}"]
            print(f"{name}: {metrics[name]:.1%} (chance {chance:.1%})")

    # Write a SavedModel; serve_saved_model.py shows how to use it.
    model = AlignDualEncoder.from_preset(run["model"])
    model.export(args.output / "saved_model")
    print(f"Exported to {args.output / 'saved_model'}")
    return metrics


def parse(arguments):
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="align_b0_bert_mini")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--hold-out", type=float, default=0.1, help="share")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
