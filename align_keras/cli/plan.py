import json
import os

from align_keras.cli.options import ModelPath
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path

# Options that replace a field of the recipe.
_FIELDS = {
    "optimizer": "--optimizer",
    "image_size": "--resolution",
    "microbatch_size": "--microbatch",
    "remat": "--remat",
}


def add_arguments(parser):
    parser.add_argument(
        "--preset",
        type=ModelPath,
        required=True,
        help="name or directory of a model preset",
    )
    parser.add_argument(
        "--recipe",
        default="align",
        help="name or YAML file of a recipe (default: %(default)s)",
    )
    parser.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="kind of chip and number of chips along each axis, such as "
        "v3:16x32 or v5e:2x2; by default the devices of this machine",
    )
    parser.add_argument(
        "--batch-per-core",
        type=bounded(int, least=1),
        metavar="N",
        help="pairs on each core; by default the recipe's batch divided by the "
        "number of cores",
    )
    parser.add_argument(
        "--microbatch",
        type=bounded(int, least=1),
        metavar="N",
        help="pairs that a core embeds at a time",
    )
    parser.add_argument(
        "--remat",
        action="store_const",
        const=True,
        help="recompute activations in the backward pass",
    )
    parser.add_argument("--optimizer", help="replaces the recipe's optimizer")
    parser.add_argument(
        "--resolution",
        type=bounded(int, least=1),
        metavar="PIXELS",
        help="replaces the recipe's image_size",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field of the recipe, such as batch_norm=ghost",
    )
    parser.add_argument(
        "--vocabulary-size",
        type=bounded(int, least=1),
        metavar="N",
        help="number of tokens; by default that of the preset",
    )
    parser.add_argument(
        "--shard-state",
        action="store_true",
        help="let each core hold a part of the weights and of the optimizer's "
        "state, as with `train --shard-state`",
    )
    parser.add_argument(
        "--price-per-core-hour",
        type=bounded(float, least=0),
        metavar="PRICE",
        help="price that you pay; there is no default",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--search",
        action="store_true",
        help="find the largest batch per core that fits, with and without "
        "remat and microbatches",
    )
    modes.add_argument(
        "--compare",
        nargs="*",
        metavar="CHIP:SHAPE",
        help="plan the same batch for several chips; by default all kinds",
    )
    parser.add_argument(
        "--limit",
        type=bounded(int, least=1),
        metavar="N",
        help="largest batch that --search tries (default: 1024)",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        default="plan",
        metavar="DIR",
        help="directory to write to, where plans for a topology are kept as "
        "well (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON"
    )


def run(options):
    # Only JAX compiles for hardware that is not present, and then it must not
    # look for local hardware.
    os.environ["KERAS_BACKEND"] = "jax"
    if options.topology or options.compare is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"

    # Before JAX is loaded, which takes seconds.
    recipe, microbatch = _recipe(options)
    from align_keras.planning import write_plans

    settings = {
        "recipe": recipe,
        "topology": options.topology,
        "vocabulary_size": options.vocabulary_size,
        "shard_state": options.shard_state,
        "price": options.price_per_core_hour,
    }
    common = options.preset, options.output
    batch = {
        "batch_per_core": options.batch_per_core,
        "microbatch_size": microbatch,
    }
    if options.search:
        found, text = write_plans.write_search(
            *common,
            microbatch=microbatch,
            limit=1024 if options.limit is None else options.limit,
            **settings,
        )
    elif options.compare is not None:
        found, text = write_plans.write_comparison(
            *common, options.compare, **batch, **settings
        )
    else:
        found, text = write_plans.write_plan(*common, **batch, **settings)
    print(json.dumps(found) if options.json else text)


def _recipe(options):
    """Load the recipe with the fields that options replace.

    Returns:
        A pair of a `Recipe`, and the size of microbatches or `None`. They
        divide the batch of a core, not that of the recipe.
    """
    from align_keras.cli.train import read_assignments
    from align_keras.training import load_recipe

    fields = read_assignments(
        options.set,
        {
            field: (option, getattr(options, option.removeprefix("--")))
            for field, option in _FIELDS.items()
        },
    )
    if "vocabulary_size" in fields:
        raise ValueError(
            "In a recipe, `vocabulary_size` is the size of a vocabulary to be "
            "learned. For the rows of the embedding table, give "
            "`--vocabulary-size`."
        )
    if options.search:
        _refuse_what_is_searched(options, fields)
    elif options.limit is not None:
        raise ValueError("`--limit` belongs to `--search`: give both.")
    microbatch = fields.pop("microbatch_size", None)
    return load_recipe(options.recipe, **fields), _whole(microbatch)


def _whole(microbatch):
    try:
        return microbatch if microbatch is None else int(str(microbatch))
    except ValueError:
        raise ValueError(
            "Recipe field `microbatch_size` must be of type int. "
            f"Received: microbatch_size={microbatch!r}"
        ) from None


def _refuse_what_is_searched(options, fields):
    sized = "microbatch_size" in fields and options.microbatch is None
    if sized or "remat" in fields or options.batch_per_core is not None:
        raise ValueError(
            "`--search` tries batches, with and without remat and "
            "microbatches: leave out `--batch-per-core`, `--remat`, and "
            "`--set` with `remat` or `microbatch_size`; `--microbatch N` "
            "gives the size to try."
        )
