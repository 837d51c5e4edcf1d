"""`align-keras evaluate zero-shot`."""

from align_keras.cli.evaluate import shared_options


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    shared_options.add_labelled(parser, "data")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes: one on each line, or JSON, which may hold "
        "templates too",
    )
    parser.add_argument(
        "--all-classes",
        action="store_true",
        help="compete with all named classes, not with those of the data",
    )
    parser.add_argument(
        "--ensemble",
        choices=["normalized", "plain"],
        default="normalized",
        help="whether prompts are normalised before their mean",
    )
    shared_options.add_depths(parser, [1, 5])


def run(args):
    """Measure zero-shot classification and print the result."""
    from align_keras.evaluation import measure_zero_shot

    data = shared_options.labelled(args, "data")
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
