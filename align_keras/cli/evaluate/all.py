"""`align-keras evaluate all`: run all evaluations that have data."""

import json

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_batch_size
from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    add_json(parser)
    parser.add_argument(
        "--model",
        type=ModelPath,
        required=True,
        action="append",
        metavar="MODEL",
        help="a model; repeat the option to measure several",
    )
    parser.add_argument(
        "--data-root",
        type=InputPath,
        required=True,
        metavar="DIR",
        help="directory laid out as in docs/evaluation.md",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        default="evaluation",
        metavar="DIR",
        help="directory for results, vectors and report.md (default: "
        "%(default)s)",
    )
    add_allow_outside(parser)
    add_batch_size(parser)
    shared_options.add_bootstrap(parser)


def run(args):
    """Run the evaluations; print the results with `--json`."""
    from align_keras.evaluation import measure_all
    from align_keras.evaluation.results import plain

    found = measure_all(
        args.model,
        args.data_root,
        args.output,
        args.batch_size,
        samples=args.bootstrap,
        allow_outside=args.allow_outside,
    )
    if args.json:
        print(json.dumps(plain(found)))
