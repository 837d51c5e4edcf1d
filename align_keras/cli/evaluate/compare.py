"""`align-keras evaluate compare`: compare the results of two models."""

import json

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import InputPath
from align_keras.cli.options import add_json


def add_arguments(parser):
    """Declare the options."""
    add_json(parser)
    parser.add_argument("first", type=InputPath, metavar="A.json")
    parser.add_argument("second", type=InputPath, metavar="B.json")
    shared_options.add_bootstrap(parser)


def run(args):
    """Compare two results and print the comparison."""
    from align_keras.evaluation import compare_results
    from align_keras.evaluation.describe_results import describe_comparison

    found = compare_results(args.first, args.second, args.bootstrap)
    print(json.dumps(found) if args.json else describe_comparison(found))
