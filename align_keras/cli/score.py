"""`align-keras score`: measure how well captions fit their images."""

import json

from align_keras.cli.options import InputPath
from align_keras.cli.options import add_parts
from align_keras.cli.options import bounded
from align_keras.cli.options import parts_options


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "source",
        type=InputPath,
        metavar="PAIRS",
        help="TFRecord files, .tar archives or Parquet files with images: "
        "folder, file or glob; or a folder of images with captions; or a table "
        "that lists images in its own folder",
    )
    parser.add_argument(
        "--captions",
        type=InputPath,
        metavar="FILE",
        help="table that lists images of the folder PAIRS, or the directory "
        "that `align-keras curate` wrote (default: the captions file in PAIRS)",
    )
    parser.add_argument(
        "--image-column", metavar="NAME", help="column of images in a table"
    )
    parser.add_argument(
        "--caption-column", metavar="NAME", help="column of captions in a table"
    )
    parser.add_argument(
        "--block-size",
        type=bounded(int, least=2),
        default=4096,
        metavar="N",
        help="pairs among which to look for the nearest other caption and "
        "image (default: %(default)s)",
    )
    add_parts(parser)


def run(args):
    """Score the pairs and print a summary."""
    from align_keras.embedding import score
    from align_keras.embedding.score_files import score_task

    manifest = score(
        args.source,
        captions=args.captions,
        image_column=args.image_column,
        caption_column=args.caption_column,
        block_size=args.block_size,
        **parts_options(args, score_task),
    )
    if args.json:
        print(json.dumps(manifest))
        return
    print(
        f"Scored {manifest['records']} pairs, in "
        f"{len(manifest['shards'])} files in `{args.output}`; "
        f"{manifest['skipped']} left out."
    )
