"""`align-keras embed`: images to Parquet files of vectors."""

import json

from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_batch_size
from align_keras.cli.options import add_json
from align_keras.cli.options import add_parts
from align_keras.cli.options import output_path
from align_keras.cli.options import strategy_or_tasks


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
    add_batch_size(parser)
    parser.add_argument(
        "--thumbnail-size",
        type=int,
        default=256,
        metavar="N",
        help="pixels of a thumbnail's shorter side, 0 for none "
        "(default: %(default)s)",
    )
    add_parts(parser)
    add_allow_outside(parser)
    add_json(parser)


def run(args):
    """Embed, and print a summary."""
    from align_keras.embedding import embed
    from align_keras.embedding.embed_files import embed_task

    manifest = embed(
        args.source,
        args.output,
        args.model,
        batch_size=args.batch_size,
        thumbnail_size=args.thumbnail_size,
        images_per_shard=args.images_per_shard,
        max_pixels=args.max_pixels,
        allow_outside=args.allow_outside,
        progress=not args.json,
        **strategy_or_tasks(args, embed_task),
    )
    if args.json:
        print(json.dumps(manifest))
        return
    print(
        f"{manifest['records']} vectors in {len(manifest['shards'])} files in "
        f"`{args.output}`; {manifest['skipped']} images left out."
    )
