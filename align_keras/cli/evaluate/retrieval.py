"""`align-keras evaluate retrieval`."""

import dataclasses

from align_keras.cli.evaluate import shared_options


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    parser.add_argument(
        "--data",
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote; "
        "or a folder of images, with --captions or a captions.csv in it",
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="caption file, such as dataset_coco.json of Karpathy's splits",
    )
    parser.add_argument(
        "--split",
        help="splits of the caption file or of TFDS (default: test)",
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
    from align_keras.data.captions import find_caption_file
    from align_keras.evaluation import datasets

    if (args.tfds is None) == (args.data is None):
        raise ValueError("Give either `--data` or `--tfds`.")
    shared_options.refuse_without_tfds(args)
    if args.tfds and args.captions:
        shared_options.refuse(
            "captions", "is for files: a TFDS data set has its own"
        )
    if args.data and not args.captions:
        args.captions = find_caption_file(args.data)
    if not (args.tfds or args.captions):
        for option in ("split", "captions_per_image"):
            if getattr(args, option) is not None:
                shared_options.refuse(
                    option,
                    "is for `--captions` and `--tfds`: TFRecord files are "
                    "taken as they are",
                )
        return datasets.records(args.data, args.name)
    first = args.captions_per_image or datasets.CAPTIONS_PER_IMAGE
    if args.tfds:
        data = datasets.tfds_captions(
            args.tfds, args.split or "test", args.tfds_directory, first
        )
        return dataclasses.replace(data, name=args.name or data.name)
    split = args.split
    if split is None and str(args.captions).endswith(".json"):
        split = "test"
    return datasets.karpathy(args.captions, args.data, split, args.name, first)
