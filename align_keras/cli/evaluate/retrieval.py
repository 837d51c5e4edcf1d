"""`align-keras evaluate retrieval`."""

import dataclasses

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import add_allow_outside


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    parser.add_argument(
        "--data",
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote; "
        "a folder of images, with --captions, a captions.csv or .txt files in "
        "it; or archives or Parquet files, as for `pack`",
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="caption file, such as dataset_coco.json of Karpathy's splits, "
        "or the directory that `align-keras curate` wrote",
    )
    parser.add_argument(
        "--split",
        help="splits of the caption file or of TFDS (default: test, where "
        "TFDS or a JSON file tells splits)",
    )
    parser.add_argument(
        "--captions-per-image",
        type=int,
        metavar="N",
        help="take the first N of a caption file or of TFDS (default: 5)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=1,
        metavar="N",
        help="search N equal parts by themselves; 5 for MSCOCO 1K",
    )
    shared_options.add_tfds(parser, "coco_captions")
    shared_options.add_name(parser)
    add_allow_outside(parser)
    shared_options.add_depths(parser, [1, 5, 10])


def run(args):
    """Measure retrieval and print the result."""
    from align_keras.evaluation import measure_retrieval

    data = open_captioned(args)
    result = measure_retrieval(
        shared_options.embedder(args),
        data,
        ks=args.k,
        folds=args.folds,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)


def open_captioned(args):
    """Return the captioned images that the options name, a `DataSet`."""
    from align_keras.evaluation import datasets

    if (args.tfds is None) == (args.data is None):
        raise ValueError("Give either `--data` or `--tfds`.")
    shared_options.refuse_without_tfds(args)
    if args.tfds and args.captions:
        shared_options.refuse(
            "captions", "is for files: a TFDS data set has its own"
        )
    if not args.tfds:
        return datasets.captioned(
            args.data,
            args.captions,
            args.split,
            args.name,
            args.captions_per_image,
            args.allow_outside,
        )
    data = datasets.tfds_captions(
        args.tfds,
        args.split or "test",
        args.tfds_directory,
        args.captions_per_image or datasets.CAPTIONS_PER_IMAGE,
    )
    return dataclasses.replace(data, name=args.name or data.name)
