"""`align-keras evaluate words`."""

from align_keras.cli.evaluate import common


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="SimLex-999.txt"
    )


def run(args):
    """Measure word similarity and print the result."""
    from align_keras.evaluation.runner import measure_words

    result = measure_words(
        common.embedder(args), args.data, samples=args.bootstrap
    )
    common.show(args, result)
