"""Plans of a small model, as JSON; runs on the JAX backend in its own process.

Arguments: the directory to write to, names of image towers, and `tpu` where
libtpu is there.
"""

import dataclasses
import io
import json
import sys
from contextlib import redirect_stderr
from contextlib import redirect_stdout

import jax
import keras

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras import cli
from align_keras.interop.efficientnet import coefficients
from align_keras.keras_hub_internals import abstract_variables
from align_keras.planning import DoesNotFit
from align_keras.planning import find_largest_batch
from align_keras.planning import plan
from align_keras.planning.flops import count_flops
from align_keras.planning.plan import check_price
from align_keras.training import load_recipe

RECIPE = dataclasses.replace(
    load_recipe("align", image_size=32, sequence_length=8),
    initial_temperature=None,
)
# Of the images that each network is published with.
SIDES = {
    "b0": 224,
    "b1": 240,
    "b2": 260,
    "b3": 300,
    "b4": 380,
    "b5": 456,
    "b6": 528,
    "b7": 600,
    "l2": 800,
}
SIZES = ["--resolution", "32", "--set", "sequence_length=8"]


def small_model(vocabulary_size):
    """One convolution, and a vector for each token."""
    images = keras.Input((32, 32, 3), name="images")
    features = keras.layers.Conv2D(8, 3, strides=4, use_bias=False)(images)
    features = keras.layers.BatchNormalization()(features)
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(vocabulary_size, 16)(tokens)
    return AlignDualEncoder(
        keras.Model(images, features),
        keras.Model({"token_ids": tokens}, vectors),
        embedding_dim=24,
        text_pooling="first",
    )


def wide_text_model(vocabulary_size):
    """All but all of its operations are products of matrices."""
    images = keras.Input((32, 32, 3), name="images")
    features = keras.layers.Conv2D(8, 8, strides=8, use_bias=False)(images)
    return AlignDualEncoder(
        keras.Model(images, features),
        BertTextEncoder(vocabulary_size, 1, 4, 512, 2048),
        embedding_dim=24,
    )


def plan_of_products():
    recipe = dataclasses.replace(RECIPE, sequence_length=64, optimizer="sgd")
    return plan(wide_text_model, recipe, batch_per_core=16, vocabulary_size=50)


def make(**options):
    options = {"vocabulary_size": 50, "batch_per_core": 8, **options}
    return plan(small_model, RECIPE, **options)


def too_large(topology):
    """The error of a vocabulary whose vectors fill any core."""
    try:
        make(topology=topology, vocabulary_size=2**28)
    except DoesNotFit as error:
        return {
            "message": str(error),
            "needed": error.needed,
            "capacity": error.capacity,
        }


@abstract_variables()
def tower_flops(names):
    """Operations of towers, forward, for images and texts of these sizes."""
    counts = {}
    for name, size in SIDES.items():
        if name not in names:
            continue
        # Odd maps are padded as in the published networks.
        tower = EfficientNetBackbone(*coefficients(name), padding="same")
        images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
        counts[name] = _count(tower, images)
    tokens = jax.ShapeDtypeStruct((1, 64), "int32")
    inputs = {"token_ids": tokens, "padding_mask": tokens}
    base = BertTextEncoder(100, 12, 12, 768, 3072)
    counts["base"] = _count(base, inputs)
    return counts


def _count(model, inputs):
    variables = model.variables

    def forward(values, inputs):
        mapping = zip(variables, values, strict=True)
        with keras.StatelessScope(mapping):
            return model(inputs, training=True)

    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
    return count_flops(jax.make_jaxpr(forward)(values, inputs))


def command(*arguments):
    """Run the command line; returns its status and what it says."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            status = cli.main(["plan", *arguments])
        except SystemExit as end:
            status = end.code
    return {
        "status": status,
        "output": output.getvalue(),
        "error": errors.getvalue(),
    }


def unread(*arguments):
    """Run the command line where JAX cannot parse the program."""

    def fail(compiled):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    before = jax.stages.Compiled.as_text
    jax.stages.Compiled.as_text = fail
    try:
        return command(*arguments)
    finally:
        jax.stages.Compiled.as_text = before


def without_libtpu(*arguments):
    """Run the command line where libtpu is not installed."""
    before = sys.modules.get("libtpu")
    sys.modules["libtpu"] = None
    try:
        return command(*arguments)
    finally:
        del sys.modules["libtpu"]
        if before:
            sys.modules["libtpu"] = before


def refused(function, *arguments, **options):
    """Return why a function refuses its arguments."""
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)


def refusals(directory, preset):
    """Command lines that must end before anything is compiled."""
    common = ["--preset", preset, "--output", f"{directory}/none", *SIZES]
    search = [*common, "--search"]
    lines = {
        "no field": [*common, "--set", "topology=v5e:2x2"],
        "rows by --set": [*common, "--set", "vocabulary_size=50"],
        "searched remat": [*search, "--set", "remat=true"],
        "searched size": [*search, "--set", "microbatch_size=8"],
        "limit alone": [*common, "--limit", "8"],
        "limit": [*search, "--limit", "-5"],
        "limit of 0": [*search, "--limit", "0"],
        "microbatch": [*search, "--microbatch", "0"],
        "size in words": [*common, "--set", "microbatch_size=true"],
        "size of 0": [*common, "--set", "microbatch_size=0"],
        "resolution twice": [*common, "--set", "image_size=64"],
        "remat twice": [*common, "--remat", "--set", "remat=false"],
        "price": [*common, "--price-per-core-hour", "-1"],
        "vocabulary": [*common, "--vocabulary-size", "60"],
        "no vocabulary": [*common, "--vocabulary-size", "0"],
        "no preset": ["--preset", "align_b3", "--compare", "v5e:1x1"],
    }
    return {name: command(*line) for name, line in lines.items()}


def plans_of_this_machine(directory, preset, names):
    local = ["--preset", preset, "--output", f"{directory}/plan", *SIZES]
    return {
        "towers": tower_flops(names),
        "products": plan_of_products(),
        "command": command(
            *local, "--batch-per-core", "8", "--price-per-core-hour", "2.5"
        ),
        "assigned": command(
            *local,
            *("--batch-per-core", "6", "--json", "--set", "remat=true"),
            *("--set", "microbatch_size=3", "--output", f"{directory}/other"),
        ),
        "refusals": refusals(directory, preset),
        "no price": refused(check_price, -1),
        "no words": refused(plan, small_model, RECIPE, vocabulary_size=0),
        "unknown": command(*local, "--topology", "v9:2x2"),
        "no_libtpu": without_libtpu(*local, "--topology", "v5e:2x2"),
        "uneven": command(*local, "--microbatch", "3", "--batch-per-core", "8"),
    }


def plans_of_tpus(directory, preset):
    compared = ["--preset", preset, "--output", f"{directory}/chips", *SIZES]
    compared += ["--set", "batch_size=32", "--json"]
    compared += ["--compare", "v5e:2x2", "v3:2x2", "v6e:16x16"]
    return {
        "compared": command(*compared),
        "again": command(*compared),
        "split": make(topology="v3:1x1", shard_state=True),
        "too_large": too_large("v5e:1x1"),
        "unread": unread(
            *("--preset", preset, "--output", f"{directory}/unread", *SIZES),
            *("--topology", "v5e:2x2", "--batch-per-core", "8"),
        ),
        "searched": find_largest_batch(
            small_model,
            RECIPE,
            "v5e:1x1",
            microbatches=(None, 8),
            limit=16,
            vocabulary_size=50,
        ),
    }


def main(directory, *names):
    preset = f"{directory}/preset"
    small_model(50).save_to_preset(preset)
    results = plans_of_this_machine(directory, preset, names)
    if "tpu" in names:
        results |= plans_of_tpus(directory, preset)
    with open(f"{directory}/plans.json", "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
