import json
from pathlib import Path

from align_keras.cli.options import STRATEGIES
from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    parser.add_argument(
        "--preset",
        type=ModelPath,
        help="name, directory or handle of a model preset; or of a checkpoint "
        "of Hugging Face's AlignModel, such as hf://kakaobrain/align-base; "
        "may be left out if --image-weights and --text-weights are given",
    )
    for kind, example in (
        ("image", "hf://timm/tf_efficientnet_b0.ns_jft_in1k"),
        ("text", "hf://google-bert/bert-base-uncased"),
    ):
        parser.add_argument(
            f"--{kind}-weights",
            type=ModelPath,
            metavar="TOWER",
            help=f"{kind} encoder to start from: the name, directory or "
            f"handle of a tower, such as {example}",
        )
    parser.add_argument(
        "--recipe", required=True, help="name or YAML file of a recipe"
    )
    parser.add_argument(
        "--data",
        type=InputPath,
        required=True,
        help="TFRecord files (directory or glob), or a folder of images "
        "with a captions.csv, captions.tsv or captions.jsonl",
    )
    parser.add_argument(
        "--workdir",
        type=output_path,
        required=True,
        help="directory of the run",
    )
    parser.add_argument(
        "--validation-data",
        type=InputPath,
        help="the same, to evaluate on at checkpoints; by default a tenth of "
        "the images of a folder, held out from training",
    )
    parser.add_argument(
        "--hold-out",
        type=bounded(float, least=0, most=0.5),
        default=0.1,
        metavar="SHARE",
        help="share of a folder's images to hold out without "
        "--validation-data, 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--vocabulary",
        type=InputPath,
        help="WordPiece vocabulary, one token per line; by default that of "
        "the preset, or one learned from the captions",
    )
    parser.add_argument(
        "--strategy",
        default="auto",
        choices=STRATEGIES,
    )
    parser.add_argument(
        "--shard-state",
        action="store_true",
        help="let each device hold a part of the weights and of the "
        "optimizer's state (several JAX devices)",
    )
    parser.add_argument(
        "--export",
        type=output_path,
        metavar="DIR",
        help="where to write a SavedModel at the end; by default "
        "WORKDIR/saved_model",
    )
    parser.add_argument(
        "--no-export",
        dest="export",
        action="store_const",
        const="",
        help="write no SavedModel",
    )
    parser.add_argument(
        "--no-diagnostics",
        dest="diagnostics",
        action="store_false",
        help="do not report how well each encoder tells its inputs apart",
    )
    parser.add_argument(
        "--log",
        action="append",
        choices=["tensorboard", "wandb", "mlflow", "none"],
        help="where the metrics go besides metrics.jsonl; may be repeated; "
        "default: tensorboard, in WORKDIR/tensorboard",
    )
    add_allow_outside(parser)
    parser.add_argument("--seed", type=int, help="replaces the recipe's seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field of the recipe, such as batch_size=256",
    )
    parser.add_argument(
        "--plan",
        type=InputPath,
        metavar="FILE",
        help="a plan.json of `align-keras plan`; at the end, the measured time "
        "of a step is printed next to the planned one",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON"
    )


def read_assignments(assignments, options=None):
    """Turn a list of FIELD=VALUE into a dict.

    Args:
        assignments: list of strings, the values of `--set`.
        options: dict. For each field that an option sets as well, the option
            and its value, or `None` where it is not given.

    Returns:
        A dict from field to value.

    Raises:
        ValueError: An assignment has another form, or a field is set twice.
    """
    fields, given = {}, {}
    for name, (option, value) in (options or {}).items():
        if value is not None:
            fields[name] = value
            # A switch is given without a value.
            given[name] = option if value is True else f"{option} {value}"
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"`--set` needs the form FIELD=VALUE. Received: {assignment!r}"
            )
        if name in given:
            raise ValueError(
                f"The field `{name}` is set twice: leave out one. Received: "
                f"{given[name]}, --set {assignment}"
            )
        given[name] = f"--set {assignment}"
        # The recipe converts all other values.
        fields[name] = {"true": True, "false": False}.get(value, value)
    return fields


def read_log(names):
    """Turn the values of `--log` into the names of loggers."""
    names = names or ["tensorboard"]
    if "none" in names and len(names) > 1:
        raise ValueError("`--log none` cannot be combined with other `--log`s.")
    return [name for name in names if name != "none"]


def run(options):
    seed = {"seed": ("--seed", options.seed)}
    overrides = read_assignments(options.set, seed)
    log = read_log(options.log)

    from align_keras.training import load_recipe

    # Report errors in the recipe before TensorFlow is loaded.
    recipe = load_recipe(options.recipe, **overrides)
    towers = options.image_weights, options.text_weights
    if options.preset is None and None in towers:
        raise ValueError(
            "A run needs `--preset`, or both `--image-weights` and "
            "`--text-weights`."
        )

    from align_keras.training import train

    if options.plan:
        from align_keras.training.plan_comparison import load_plan

        plan = load_plan(
            options.plan, options.preset, recipe, options.shard_state
        )
    result = train(
        options.preset,
        recipe,
        data=options.data,
        workdir=options.workdir,
        validation_data=options.validation_data,
        vocabulary=options.vocabulary,
        strategy=options.strategy,
        hold_out=options.hold_out,
        verbose=not options.json,
        image_weights=options.image_weights,
        text_weights=options.text_weights,
        diagnostics=options.diagnostics,
        allow_outside=options.allow_outside,
        log=log,
        shard_state=options.shard_state,
    )
    if options.plan and result["process"] == 0:
        from align_keras.training.plan_comparison import compare_with_plan
        from align_keras.training.plan_comparison import describe_step_time

        result["step_time"] = compare_with_plan(plan, options.workdir)
        if not options.json:
            print(describe_step_time(result["step_time"]))
    if options.export != "" and result["process"] == 0:
        from align_keras.serving.saved_model import update_saved_model

        directory = options.export
        if directory is None:
            directory = Path(result["model"]).with_name("saved_model")
        update_saved_model(result["model"], directory)
        result["export"] = str(directory)
        if not options.json:
            print(f"The SavedModel is in {directory}")
    if options.json:
        print(json.dumps(result))
