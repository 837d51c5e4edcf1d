"""`align-keras embed`: embed images into Parquet files of vectors."""

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
        metavar="SOURCE",
        help="folder of images; or TFRecord files or .tar archives: folder, "
        "file or glob",
    )
    parser.add_argument(
        "--thumbnail-size",
        type=bounded(int, least=0),
        default=256,
        metavar="N",
        help="pixels of a thumbnail's shorter side, 0 for none "
        "(default: %(default)s)",
    )
    add_parts(parser)


def run(args):
    """Embed the images and print a summary."""
    from align_keras.embedding import embed
    from align_keras.embedding.embed_files import embed_task

    manifest = embed(
        args.source,
        thumbnail_size=args.thumbnail_size,
        **parts_options(args, embed_task),
    )
    if args.json:
        print(json.dumps(manifest))
        return
    print(
        f"{manifest['records']} vectors in {len(manifest['shards'])} files in "
        f"`{args.output}`; {manifest['skipped']} images left out."
    )
