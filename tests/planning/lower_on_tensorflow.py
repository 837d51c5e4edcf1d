"""Lower training steps with XLA on the TensorFlow backend, as a TPU would.

Arguments: pairs of towers such as `b0-tiny`. Prints one JSON object a line.
The towers have all their blocks and channels; images, texts and vocabulary
are small, on which no operation depends. `b0-tiny:whole` has optimizer and
metrics in the step; without `:whole` it is loss and gradients, whose weights
need not exist. `small` is a small model, `small:microbatch` its step in
microbatches, with rematerialisation. `dynamic` and `foreign` are functions that
a TPU could not run.
"""

import dataclasses
import json
import re
import sys
import time

import keras
import tensorflow as tf

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.keras_hub_internals import abstract_variables
from align_keras.models.mbconv_block import MBConvBlock
from align_keras.training import load_recipe
from align_keras.training.assembly import build_network
from align_keras.training.assembly import compile_model

PIXELS, TOKENS, VOCABULARY, BATCH = 65, 8, 100, 4
# What XLA writes for a size that is known at run time only, and for work
# that it leaves to the host.
DYNAMIC = re.compile(r"\[[\d,]*<=|set-dimension-size|get-dimension-size")
FOREIGN = re.compile(r" (infeed|outfeed|send|recv|custom-call)\(")


def batch_spec():
    return {
        "images": tf.TensorSpec((BATCH, PIXELS, PIXELS, 3), "float32"),
        "token_ids": tf.TensorSpec((BATCH, TOKENS), "int32"),
        "padding_mask": tf.TensorSpec((BATCH, TOKENS), "int32"),
    }


def build(towers, **fields):
    recipe = load_recipe(
        "align", image_size=PIXELS, sequence_length=TOKENS, **fields
    )
    if towers == "small":
        recipe = dataclasses.replace(recipe, initial_temperature=None)
        return build_network(small_model, recipe, VOCABULARY), recipe
    image, text = towers.split("-")
    model = build_network(f"align_{image}_bert_{text}", recipe, VOCABULARY)
    return model, recipe


def small_model(vocabulary_size):
    """The layers of both kinds of tower, once each."""
    images = keras.Input((PIXELS, PIXELS, 3), name="images")
    features = MBConvBlock(3, 8, 3, 2, 4, batch_norm="ghost")(images)
    block = MBConvBlock(8, 8, 5, 1, 4, residual=True, dropout=0.2)
    return AlignDualEncoder(
        keras.Model(images, block(features)),
        BertTextEncoder(vocabulary_size, 1, 2, 16, 32),
    )


def whole_step(towers, **fields):
    """The step as `fit` runs it, with the state in variables."""
    model, recipe = build(towers, **fields)
    compile_model(model, recipe)
    model.optimizer.build(model.trainable_variables)

    def step(batch):
        model.train_step((batch,))
        return model.get_metrics_result()

    return model, step, [batch_spec()]


def gradient_step(towers):
    """Loss, gradients and new statistics of weights that are arguments."""
    with abstract_variables():
        model, recipe = build(towers)
    compile_model(model, recipe)

    def step(parameters, state, batch):
        with abstract_variables():
            _, found = model.take_gradients(
                (batch,), parameters, state, lambda loss: loss
            )
        return found.loss, found.hits, found.gradients, found.state

    values = [
        [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    ]
    return model, step, [*values, batch_spec()]


def dynamic(values):
    """The size of the result follows from the values."""
    return tf.boolean_mask(values, values > 0)


def foreign(values):
    """A decomposition, which the compiler leaves to a library."""
    return tf.linalg.eigh(tf.reshape(values, (2, 2)))


def lower(name, step, arguments, parameters=0):
    start = time.process_time()
    specs = tf.nest.flatten(arguments)
    # TensorFlow takes a description of the arguments if they are flat.
    flat = tf.function(
        lambda *values: step(*tf.nest.pack_sequence_as(arguments, values)),
        jit_compile=True,
        autograph=False,
    )
    text = flat.experimental_get_compiler_ir(*specs)(stage="hlo")
    print(
        json.dumps(
            {
                "towers": name,
                "parameters": parameters,
                "products": len(re.findall(r" (convolution|dot)\(", text)),
                "dynamic": sorted(set(DYNAMIC.findall(text))),
                "foreign": sorted(set(FOREIGN.findall(text))),
                "seconds": round(time.process_time() - start, 1),
            }
        ),
        flush=True,
    )


def main(arguments):
    for name in arguments:
        towers, _, how = name.partition(":")
        if name in ("dynamic", "foreign"):
            values = tf.TensorSpec((4,), "float32")
            lower(name, globals()[name], [values])
            continue
        if how == "whole":
            model, *step = whole_step(towers)
        elif how == "microbatch":
            model, *step = whole_step(towers, microbatch_size=2, remat=True)
        else:
            model, *step = gradient_step(towers)
        lower(name, *step, model.count_params())


if __name__ == "__main__":
    main(sys.argv[1:])
