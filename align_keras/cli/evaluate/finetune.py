"""`align-keras evaluate finetune`."""

from align_keras.cli.evaluate import common


def add_arguments(parser):
    """Declare the options."""
    common.add_model(parser)
    common.add_labelled(parser, "train", "data")
    parser.add_argument(
        "--recipe",
        default="fine_grained",
        metavar="NAME",
        help="fine_grained, imagenet, imagenet_frozen, or a YAML file "
        "(default: %(default)s)",
    )
    common.add_runs(parser, 1)


def run(args):
    """Fine-tune a classifier and print its result."""
    from align_keras.evaluation.finetune import finetune_classifier

    result = finetune_classifier(
        common.loader(args),
        common.labelled(args, "train"),
        common.labelled(args, "data"),
        args.recipe,
        args.workdir,
        args.runs,
        args.seed,
        args.bootstrap,
        progress=not args.json,
        identity=common.identity(args),
    )
    result["model"] = args.model
    common.show(args, result)
