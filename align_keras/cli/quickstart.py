"""`align-keras quickstart`: draw scenes, train on them, and search."""

import json

from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "--workdir",
        type=output_path,
        default="quickstart",
        metavar="DIR",
        help="directory for all output (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=bounded(int, least=0),
        default=0,
        help="seed of the images and the training (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=bounded(int, least=1),
        help="replaces the recipe's number of steps",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON"
    )


def run(args):
    """Run the quickstart; return 1 if the model did not learn enough."""
    from align_keras.quickstart import REQUIRED_TIMES_CHANCE
    from align_keras.quickstart import run_quickstart

    report = run_quickstart(
        args.workdir, args.seed, steps=args.steps, verbose=not args.json
    )
    if args.json:
        print(json.dumps(report))
    elif not report["passed"]:
        print(
            f"Recall@1 is {report['times_chance']:.1f} times chance; "
            f"at least {REQUIRED_TIMES_CHANCE} times was expected."
        )
    return 0 if report["passed"] else 1
