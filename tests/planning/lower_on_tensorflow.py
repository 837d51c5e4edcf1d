"""Lower training steps with XLA on the TensorFlow backend, as a TPU would.

Arguments: pairs of towers such as `b0-tiny`. Prints one JSON object a line.
The towers have all their blocks and channels; pictures, texts and vocabulary
are small, on which no operation depends. These are loss and gradients, whose
weights need not exist. `small:whole` is a small model with optimizer and
metrics in the step, and `small:microbatch` the same in microbatches, with
rematerialisation; `b0-tiny:whole` works too, in half a minute.
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


def lower(name, model, step, arguments):
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
                "parameters": model.count_params(),
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
        if how == "whole":
            lower(name, *whole_step(towers))
        elif how == "microbatch":
            lower(name, *whole_step(towers, microbatch_size=2, remat=True))
        else:
            lower(name, *gradient_step(towers))


if __name__ == "__main__":
    main(sys.argv[1:])
