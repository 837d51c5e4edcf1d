"""`align-keras evaluate vtab`: fine-tune on the tasks of VTAB-1k."""

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import bounded


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks to run, such as caltech101 (default: all)",
    )
    parser.add_argument(
        "--trials",
        type=bounded(int, least=1),
        default=50,
        metavar="N",
        help="settings to try for each task (default: %(default)s)",
    )
    shared_options.add_tfds_directory(parser)
    shared_options.add_runs(parser, 3)


def run(args):
    """Fine-tune on the tasks and print the result."""
    from align_keras.evaluation import measure_vtab
    from align_keras.evaluation.vtab import Sweep

    result = measure_vtab(
        shared_options.loader(args),
        args.workdir,
        args.tasks,
        Sweep(trials=args.trials),
        args.runs,
        args.seed,
        args.tfds_directory,
        samples=args.bootstrap,
        progress=not args.json,
        identity=shared_options.identity(args),
    )
    result["model"] = args.model
    shared_options.show(args, result)
