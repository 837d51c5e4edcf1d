"""`align-keras evaluate finetune`: fine-tune a classifier."""

from align_keras.cli.evaluate import shared_options


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_model(parser)
    shared_options.add_labelled(parser, "train", "data")
    parser.add_argument(
        "--recipe",
        default="fine_grained",
        metavar="NAME",
        help="fine_grained, imagenet, imagenet_frozen, or a YAML file "
        "(default: %(default)s)",
    )
    shared_options.add_runs(parser, 1)


def run(args):
    """Fine-tune a classifier and print its result."""
    train = shared_options.labelled(args, "train")
    test = shared_options.labelled(args, "data")
    from align_keras.evaluation import measure_finetune

    result = measure_finetune(
        shared_options.loader(args),
        train,
        test,
        args.recipe,
        args.workdir,
        args.runs,
        args.seed,
        args.bootstrap,
        progress=not args.json,
        identity=shared_options.identity(args),
    )
    result["model"] = args.model
    shared_options.show(args, result)
