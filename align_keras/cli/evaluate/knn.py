"""`align-keras evaluate knn`."""

from align_keras.cli.evaluate import common


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    common.add_embedding(parser)
    common.add_labelled(parser, "train", "data")
    common.add_depths(parser, [1])


def run(args):
    """Measure nearest neighbours and print the result."""
    from align_keras.evaluation.labelled_runner import measure_knn

    train = common.labelled(args, "train")
    test = common.labelled(args, "data")
    result = measure_knn(
        common.embedder(args),
        train,
        test,
        ks=args.k,
        **common.embedding_options(args),
    )
    common.show(args, result)
