"""`align-keras pack`: pack images with captions into TFRecord files."""

import json

from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "source",
        metavar="DIR",
        help="folder of images; or folder, file or glob of .tar archives (a "
        "WebDataset), of Parquet files that hold images, or of .tfrecord "
        "files to be mixed",
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="CSV, TSV, JSONL, JSON (Karpathy's form) or Parquet file, or the "
        "directory that `align-keras curate` wrote; without it, "
        "DIR/captions.csv or the like, else .txt files next to the images",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        metavar="OUT",
        required=True,
        help="directory to write the TFRecord files and manifest.json to",
    )
    parser.add_argument(
        "--split",
        help="use only these splits of the caption file, such as train,restval",
    )
    parser.add_argument(
        "--image-column", metavar="NAME", help="column of image paths"
    )
    parser.add_argument(
        "--caption-column", metavar="NAME", help="column of captions"
    )
    parser.add_argument(
        "--records-per-shard",
        type=bounded(int, least=1),
        default=1000,
        metavar="N",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--max-pixels",
        type=bounded(int, least=1),
        default=64_000_000,
        metavar="N",
        help="skip larger images; default: %(default)s",
    )
    parser.add_argument(
        "--hold-out",
        type=bounded(float, least=0, most=0.5),
        default=0,
        metavar="SHARE",
        help="hold out this share of the images, in OUT/held_out, to "
        "measure on; at most 1000",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random order of the records; default: %(default)s",
    )
    parser.add_argument(
        "--resize",
        type=bounded(int, least=1),
        metavar="PIXELS",
        help="resize images to this height and width, the `resize_size` of "
        "the recipe to train with (346 in the paper's); this makes reading "
        "several times as fast",
    )
    parser.add_argument(
        "--part",
        metavar="N/OF",
        help="pack one of several parts, such as 3/64, each on a machine of "
        "its own; the part that finishes last writes the manifest of all",
    )
    add_allow_outside(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the manifest as JSON, without the list of files",
    )


def run(args):
    """Pack the images and print a summary."""
    from align_keras.data import pack
    from align_keras.data.parts import describe_missing

    manifest = pack(
        args.source,
        args.output,
        captions=args.captions,
        split=args.split,
        records_per_shard=args.records_per_shard,
        image_column=args.image_column,
        caption_column=args.caption_column,
        max_pixels=args.max_pixels,
        hold_out=args.hold_out,
        seed=args.seed,
        resize=args.resize,
        allow_outside=args.allow_outside,
        progress=not args.json,
        part=args.part,
    )
    if args.json:
        print(json.dumps({k: v for k, v in manifest.items() if k != "skipped"}))
        return
    print(
        f"{manifest['records']} images with {manifest['captions']} captions "
        f"in {len(manifest['shards'])} files in {args.output}."
    )
    if manifest.get("missing_parts"):
        count = manifest["arguments"]["part"][1]
        print(describe_missing(manifest["missing_parts"], count))
    if manifest["held_out"]:
        print(f"{manifest['held_out']} more in {args.output}/held_out.")
    for reason, count in manifest["skipped_reasons"].items():
        print(f"Skipped: {count} {reason}.")
