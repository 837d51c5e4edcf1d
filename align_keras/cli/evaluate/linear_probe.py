"""`align-keras evaluate linear-probe`."""

from align_keras.cli.evaluate import common


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    common.add_embedding(parser)
    common.add_labelled(parser, "train", "data", "validation")
    parser.add_argument(
        "--solver",
        choices=["lbfgs", "sgd"],
        default="lbfgs",
        help="lbfgs with a sweep of the weight decay, or the paper's SGD",
    )


def run(args):
    """Measure a linear probe and print the result."""
    from align_keras.evaluation.labelled_runner import measure_linear_probe

    parts = [
        common.labelled(args, part) for part in ("train", "data", "validation")
    ]
    result = measure_linear_probe(
        common.embedder(args),
        *parts,
        solver=args.solver,
        **common.embedding_options(args),
    )
    common.show(args, result)
