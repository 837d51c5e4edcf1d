"""`align-keras embed`: images to Parquet files of vectors."""

import json

from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_batch_size
from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of images; or TFRecord files or .tar archives: folder, "
        "file or glob",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="preset directory of a trained model, a SavedModel, or the name "
        "or handle of a preset with weights",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory to write",
    )
    parser.add_argument(
        "--strategy",
        help="auto, one-device, mirrored, multi-worker or tpu (default: auto); "
        "not with --spark",
    )
    parser.add_argument(
        "--spark",
        metavar="MASTER",
        help="embed on Spark instead, such as local[2] or yarn",
    )
    add_batch_size(parser)
    parser.add_argument(
        "--thumbnail-size",
        type=int,
        default=256,
        metavar="N",
        help="pixels of a thumbnail's shorter side, 0 for none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=4096,
        metavar="N",
        help="images of a folder in one file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=64_000_000,
        metavar="N",
        help="leave out larger images (default: %(default)s)",
    )
    add_allow_outside(parser)
    add_json(parser)


def run(args):
    """Embed, and print a summary."""
    from align_keras.embedding import embed

    if args.spark and args.strategy:
        raise ValueError(
            "On Spark each task has one device: leave out --strategy or "
            f"--spark. Received: --strategy {args.strategy}"
        )
    strategy = run_tasks = None
    if args.spark:
        from align_keras.embedding.spark import make_session
        from align_keras.embedding.spark import on_spark

        run_tasks = on_spark(make_session(args.spark))
    else:
        from align_keras.training.strategies import make_strategy

        strategy = make_strategy(args.strategy or "auto")
    manifest = embed(
        args.source,
        args.output,
        args.model,
        strategy=strategy,
        batch_size=args.batch_size,
        thumbnail_size=args.thumbnail_size,
        images_per_shard=args.images_per_shard,
        max_pixels=args.max_pixels,
        allow_outside=args.allow_outside,
        progress=not args.json,
        run_tasks=run_tasks,
    )
    if args.json:
        print(json.dumps(manifest))
        return
    print(
        f"{manifest['records']} vectors in {len(manifest['shards'])} files in "
        f"`{args.output}`; {manifest['skipped']} images left out."
    )
