"""`align-keras evaluate words`: compare word similarity with ratings."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import InputPath


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    parser.add_argument(
        "--data",
        type=InputPath,
        required=True,
        metavar="FILE",
        help="SimLex-999.txt",
    )


def run(args):
    """Measure word similarity and print the result."""
    from align_keras.evaluation import measure_words

    result = measure_words(
        shared_options.embedder(args), args.data, samples=args.bootstrap
    )
    shared_options.show(args, result)
