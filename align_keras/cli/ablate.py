"""`align-keras ablate`: variants of a model, side by side."""

import json

from align_keras.cli.options import silent


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "plan",
        metavar="YAML",
        help="what to compare, as in docs/evaluation.md",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="data, runs, the table and the plot; run again, it goes on",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON"
    )


def run(args):
    """Train and measure the variants, and print the results if asked."""
    from align_keras.evaluation.ablate import ablate

    quiet = {"say": silent, "verbose": False} if args.json else {}
    results = ablate(args.plan, args.workdir, args.bootstrap, **quiet)
    if args.json:
        print(
            json.dumps({n: json.loads(r.to_json()) for n, r in results.items()})
        )
