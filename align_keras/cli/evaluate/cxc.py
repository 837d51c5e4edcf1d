"""`align-keras evaluate cxc`: Crisscrossed Captions."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import InputPath
from align_keras.cli.options import add_allow_outside

THRESHOLDS = {"sts": 3.0, "sis": 2.5, "sits": 3.0}


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    parser.add_argument(
        "--data",
        type=InputPath,
        required=True,
        metavar="DIR",
        help="directory of the rating files, such as sts_test.csv, "
        "sis_test.csv and sits_test.csv",
    )
    parser.add_argument(
        "--captions",
        type=InputPath,
        required=True,
        metavar="FILE",
        help="dataset_coco.json",
    )
    parser.add_argument(
        "--images",
        type=InputPath,
        required=True,
        metavar="DIR",
        help="images of MSCOCO",
    )
    add_allow_outside(parser)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    for task, default in THRESHOLDS.items():
        parser.add_argument(
            f"--{task}-threshold",
            type=float,
            default=default,
            metavar="RATING",
            help="lowest rating of a pair that counts as matching (default: "
            "%(default)s)",
        )
    _add_readings(parser)
    shared_options.add_depths(parser, [1, 5, 10])


def _add_readings(parser):
    """Declare options for choices that the publications leave open."""
    parser.add_argument(
        "--rated-only",
        action="store_true",
        help="a caption matches its own image only if they were rated as "
        "matching",
    )
    parser.add_argument(
        "--no-co-captions",
        action="store_true",
        help="captions of one image match only if they were rated as matching",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="count queries without an answer as missed",
    )
    parser.add_argument(
        "--repeated",
        choices=["keep", "mean"],
        default="keep",
        help="what to do with two ratings of one pair (default: %(default)s)",
    )
    parser.add_argument(
        "--caption-queries",
        action="store_true",
        help="captions, not images, are the queries of the SITS correlation",
    )
    parser.add_argument(
        "--with-replacement",
        action="store_true",
        help="a sample of the correlation may draw a query twice",
    )


def run(args):
    """Measure Crisscrossed Captions and print the result."""
    from align_keras.evaluation import measure_cxc

    result = measure_cxc(
        shared_options.embedder(args),
        args.data,
        args.captions,
        args.images,
        args.split,
        ks=args.k,
        drop_empty=not args.keep_empty,
        positives={
            "thresholds": {
                task: getattr(args, f"{task}_threshold") for task in THRESHOLDS
            },
            "originals": not args.rated_only,
            "co_captions": not args.no_co_captions,
            "repeated": args.repeated,
        },
        correlation={
            "query_columns": {"sits": (0,)} if args.caption_queries else {},
            "replace": args.with_replacement,
            "repeated": args.repeated,
        },
        allow_outside=args.allow_outside,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)
