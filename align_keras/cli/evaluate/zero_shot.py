"""`align-keras evaluate zero-shot`: classify images by class names."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import InputPath


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    shared_options.add_labelled(parser, "data")
    parser.add_argument(
        "--classes",
        type=InputPath,
        metavar="FILE",
        help="names of the classes: one on each line, or JSON, which may hold "
        "templates too",
    )
    parser.add_argument(
        "--all-classes",
        action="store_true",
        help="choose among all named classes, not only those of the data",
    )
    parser.add_argument(
        "--objectnet",
        action="store_true",
        help="the folder is ObjectNet as published, with its mappings",
    )
    parser.add_argument(
        "--ensemble",
        choices=["normalized", "plain"],
        default="normalized",
        help="whether to normalise prompts before averaging them",
    )
    shared_options.add_depths(parser, [1, 5])


def run(args):
    """Measure zero-shot classification and print the result."""
    data = _open(args)
    from align_keras.evaluation import measure_zero_shot

    result = measure_zero_shot(
        shared_options.embedder(args),
        data,
        args.classes,
        ensemble=args.ensemble,
        all_classes=args.all_classes,
        ks=args.k,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)


def _open(args):
    if not args.objectnet:
        return shared_options.labelled(args, "data")
    if args.tfds or args.tfds_directory:
        shared_options.refuse("objectnet", "is for files, not for TFDS")
    from align_keras.evaluation import objectnet

    return objectnet(
        args.data, args.name or "objectnet", allow_outside=args.allow_outside
    )
