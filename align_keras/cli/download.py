"""`align-keras download`: fetch the images of kept pairs with img2dataset."""

import json

from align_keras.cli.options import add_json
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "kept", metavar="DIR", help="the directory that `curate` wrote"
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory to write to",
    )
    parser.add_argument(
        "--img2dataset",
        metavar="PROGRAM",
        help="img2dataset, or the Python that has it; it needs an environment "
        "of its own (default: the environment variable IMG2DATASET, or "
        "img2dataset on the path)",
    )
    parser.add_argument(
        "--format",
        default="webdataset",
        choices=["webdataset", "tfrecord", "files"],
        help="webdataset is for `pack`; tfrecord is ready for training; files "
        "can be curated again, with their images.parquet (default: "
        "%(default)s)",
    )
    for name, default, text in (
        ("image-size", 346, "pixels to resize to"),
        ("threads", 64, "downloads at once"),
        ("timeout", 10, "seconds for one image"),
        ("retries", 1, "further attempts"),
        ("pairs-per-shard", 10_000, "pairs in one file"),
    ):
        parser.add_argument(
            f"--{name}",
            type=bounded(int, least=int(name != "retries")),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--processes",
        type=bounded(int, least=1),
        metavar="N",
        help="default: the number of cores",
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="also fetch from this machine and from private networks",
    )
    add_json(parser)


def run(args):
    """Download the images and report failures."""
    from align_keras.curation import download

    result = download(
        args.kept,
        args.output,
        command=args.img2dataset,
        image_size=args.image_size,
        output_format=args.format,
        processes=args.processes,
        threads=args.threads,
        timeout=args.timeout,
        retries=args.retries,
        pairs_per_shard=args.pairs_per_shard,
        progress=not args.json,
        allow_private=args.allow_private,
    )
    if args.json:
        print(json.dumps(result))
        return
    print(f"Downloaded {result['downloaded']:,} of {result['pairs']:,} images.")
    for reason, count in result["failures"].items():
        print(f"Failed: {count:,} {reason}.")
    for reason, count in result["refused"].items():
        print(f"Refused: {count:,} {reason}.")
