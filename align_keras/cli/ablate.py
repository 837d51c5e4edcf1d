"""`align-keras ablate`: train and measure variants of a model."""

import json

from align_keras.cli.options import InputPath
from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "plan",
        type=InputPath,
        metavar="YAML",
        help="what to compare, as described in docs/evaluation.md",
    )
    parser.add_argument(
        "--workdir",
        type=output_path,
        required=True,
        metavar="DIR",
        help="data, runs, the table and the plot; a second run resumes",
    )
    parser.add_argument(
        "--bootstrap",
        type=bounded(int, least=0),
        default=1000,
        metavar="N",
        help="resamples for the intervals (default: %(default)s)",
    )
    add_allow_outside(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON"
    )


def run(args):
    """Train and measure the variants; print the results with `--json`."""
    from align_keras.evaluation import ablate
    from align_keras.evaluation.results import plain
    from align_keras.quickstart.scenes import write_scenes

    results = ablate(
        args.plan,
        args.workdir,
        draw=write_scenes,
        samples=args.bootstrap,
        verbose=not args.json,
        allow_outside=args.allow_outside,
    )
    if args.json:
        print(json.dumps(plain(results)))
