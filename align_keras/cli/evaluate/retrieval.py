"""`align-keras evaluate retrieval`: find captions by image and vice versa."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import bounded


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    shared_options.add_captioned(parser)
    parser.add_argument(
        "--folds",
        type=bounded(int, least=1),
        default=1,
        metavar="N",
        help="search each of N equal parts on its own; 5 for MSCOCO 1K",
    )
    shared_options.add_depths(parser, [1, 5, 10])


def run(args):
    """Measure retrieval and print the result."""
    data = shared_options.captioned(args)
    from align_keras.evaluation import measure_retrieval

    result = measure_retrieval(
        shared_options.embedder(args),
        data,
        ks=args.k,
        folds=args.folds,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)
