"""`align-keras evaluate multilingual`: retrieval in many languages."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import bounded

TESTS = ("xm3600", "multi30k")


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_published(
        parser,
        TESTS,
        data="the published files: a folder with captions.jsonl, or the "
        "repository of Multi30k",
        images="images of Flickr30k for multi30k; for xm3600, by default "
        "`images` in --data",
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="languages to measure, such as de th (default: all)",
    )
    parser.add_argument(
        "--captions-per-image",
        type=bounded(int, least=1),
        metavar="N",
        help="for xm3600: use only the first N captions of an image in each "
        "language (default: all)",
    )
    shared_options.add_depths(parser, [1, 5, 10])


def run(args):
    """Measure multilingual retrieval and print the result."""
    data = _open(args)
    from align_keras.evaluation.multilingual import measure_multilingual

    result = measure_multilingual(
        shared_options.embedder(args),
        data,
        ks=args.k,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)


def _open(args):
    if args.test != "xm3600":
        _check_multi30k(args)
    from align_keras.evaluation import multilingual

    options = {
        "languages": args.languages,
        "name": args.name or args.test,
        "allow_outside": args.allow_outside,
    }
    if args.test == "xm3600":
        options["captions_per_image"] = args.captions_per_image
        return multilingual.crossmodal3600(args.data, args.images, **options)
    return multilingual.multi30k(args.data, args.images, **options)


def _check_multi30k(args):
    if not args.images:
        raise ValueError(
            "multi30k needs `--images`, the folder of Flickr30k's images."
        )
    if args.captions_per_image is not None:
        shared_options.refuse(
            "captions_per_image",
            "is for xm3600: all captions of multi30k are used",
        )
