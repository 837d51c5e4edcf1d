"""`align-keras evaluate retrieval`."""

from align_keras.cli.evaluate import common


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    common.add_embedding(parser)
    parser.add_argument(
        "--data",
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote; "
        "with --captions, the folder of the pictures",
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
        default=5,
        metavar="N",
        help="take the first N of a caption file (default: %(default)s)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=1,
        metavar="N",
        help="search N equal parts by themselves; 5 for MSCOCO 1K",
    )
    common.add_tfds(parser, "coco_captions")
    common.add_name(parser)
    common.add_depths(parser, [1, 5, 10])


def run(args):
    """Measure retrieval and print the result."""
    from align_keras.evaluation.runner import measure_retrieval

    result = measure_retrieval(
        common.embedder(args),
        _captioned(args),
        ks=args.k,
        folds=args.folds,
        **common.embedding_options(args),
    )
    common.show(args, result)


def _captioned(args):
    from align_keras.evaluation import datasets

    if (args.tfds is None) == (args.data is None):
        raise ValueError("Give either `--data` or `--tfds`.")
    if args.tfds:
        return datasets.tfds_captions(
            args.tfds,
            args.split or "test",
            args.tfds_directory,
            args.captions_per_image,
        )
    if args.captions:
        split = args.split
        if split is None and args.captions.endswith(".json"):
            split = "test"
        return datasets.karpathy(
            args.captions, args.data, split, args.name, args.captions_per_image
        )
    return datasets.records(args.data, args.name)
