"""`align-keras evaluate linear-probe`: train a linear classifier."""

from align_keras.cli.evaluate import shared_options


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    shared_options.add_labelled(parser, "train", "data", "validation")
    parser.add_argument(
        "--solver",
        choices=["lbfgs", "sgd"],
        default="lbfgs",
        help="lbfgs with a sweep of the weight decay, or the paper's SGD",
    )


def run(args):
    """Measure a linear probe and print the result."""
    parts = [
        shared_options.labelled(args, part)
        for part in ("train", "data", "validation")
    ]
    from align_keras.evaluation import measure_linear_probe

    result = measure_linear_probe(
        shared_options.embedder(args),
        *parts,
        solver=args.solver,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)
