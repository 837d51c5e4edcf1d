"""`align-keras evaluate knn`: classify images by nearest neighbours."""

from align_keras.cli.evaluate import shared_options


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_embedding(parser)
    shared_options.add_labelled(parser, "train", "data")
    shared_options.add_depths(parser, [1])


def run(args):
    """Measure nearest-neighbour classification and print the result."""
    train = shared_options.labelled(args, "train")
    test = shared_options.labelled(args, "data")
    from align_keras.evaluation import measure_knn

    result = measure_knn(
        shared_options.embedder(args),
        train,
        test,
        ks=args.k,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)
