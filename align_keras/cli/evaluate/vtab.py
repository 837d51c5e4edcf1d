"""`align-keras evaluate vtab`."""

from align_keras.cli.evaluate import common
from align_keras.cli.options import silent


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="some of its tasks, such as caltech101 (default: all)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=50,
        metavar="N",
        help="settings that are tried for each task (default: %(default)s)",
    )
    common.add_tfds_directory(parser)
    common.add_runs(parser, 3)


def run(args):
    """Fine-tune on the tasks and print the result."""
    from align_keras.evaluation.vtab import Sweep
    from align_keras.evaluation.vtab import evaluate_vtab

    result = evaluate_vtab(
        common.loader(args),
        args.workdir,
        args.tasks,
        Sweep(trials=args.trials),
        args.runs,
        args.seed,
        args.tfds_directory,
        samples=args.bootstrap,
        progress=not args.json,
        say=silent if args.json else print,
        identity=common.identity(args),
    )
    result["model"] = args.model
    common.show(args, result)
