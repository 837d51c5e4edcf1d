"""Train ALIGN on a TPU with TFRecord files in Cloud Storage.

    python tpu_training.py --tpu local --data 'gs://bucket/packed/*.tfrecord' \\
        --vocabulary gs://bucket/vocabulary.txt \\
        --checkpoints gs://bucket/run --output my_align

`align-keras pack` or img2dataset writes the TFRecord files. The vocabulary file
has one WordPiece token per line. If you start the script again, it resumes from
the newest checkpoint. `main` takes any `tf.distribute` strategy, so you can try
it on the devices of one machine first.

The script trains by the recipe `coyo700m`, and honours the fields that this
recipe sets. For other recipes, use `align-keras train --strategy tpu`.
"""

import argparse

import keras
import tensorflow as tf

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import ContrastiveLoss
from align_keras import Lamb
from align_keras import WarmupLinearDecay
from align_keras.data import load_dataset
from align_keras.training import load_recipe


def main(strategy, data, vocabulary, checkpoints, output, preset, recipe):
    """Train a model, save it and return it."""
    if recipe.steps % recipe.checkpoint_every:
        raise ValueError("`checkpoint_every` must divide `steps`.")
    keras.utils.set_random_seed(recipe.seed)
    with tf.io.gfile.GFile(vocabulary) as file:
        tokenizer = AlignTokenizer(file.read().rstrip("\n").split("\n"))
    preprocessor = AlignPreprocessor(
        tokenizer,
        AlignImageConverter(
            recipe.image_size, recipe.resize_size, mirror=recipe.mirror
        ),
        recipe.sequence_length,
    )

    # Variables created within the scope are mirrored on every core.
    with strategy.scope():
        model = AlignDualEncoder.from_preset(
            preset,
            # Batch statistics of single cores would be lost when saving.
            image_encoder={"batch_norm": recipe.batch_norm or "synchronized"},
            text_encoder={"vocabulary_size": tokenizer.vocabulary_size()},
            initial_temperature=recipe.initial_temperature or 1.0,
            preprocessor=preprocessor,
            dtype=recipe.precision,
        )
        model.compile(
            optimizer=Lamb(
                WarmupLinearDecay(
                    recipe.learning_rate, recipe.warmup_steps, recipe.steps
                ),
                weight_decay=recipe.weight_decay,
            ),
            # The negatives come from all cores without configuration.
            loss=ContrastiveLoss(recipe.label_smoothing),
            # TPUStrategy already compiles the whole step.
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)

    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model), checkpoints, max_to_keep=2
    )
    manager.restore_or_initialize()
    step = int(model.optimizer.iterations.numpy())

    def batches_of_host(context):
        # Each host reads its share of the files, one batch per core.
        cores = context.num_replicas_in_sync // context.num_input_pipelines
        return load_dataset(
            data,
            preprocessor,
            context.get_per_replica_batch_size(recipe.batch_size),
            seed=recipe.seed,
            start_step=step * cores,
            shard_index=context.input_pipeline_id,
            shard_count=context.num_input_pipelines,
        )

    # What Keras calls an epoch is the interval between checkpoints.
    model.fit(
        strategy.distribute_datasets_from_function(batches_of_host),
        initial_epoch=step // recipe.checkpoint_every,
        epochs=recipe.steps // recipe.checkpoint_every,
        steps_per_epoch=recipe.checkpoint_every,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: manager.save()
            ),
            keras.callbacks.TensorBoard(f"{checkpoints}/tensorboard"),
        ],
    )
    model.save_to_preset(output)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tpu", default="local", help="name or address")
    parser.add_argument("--data", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--output", required=True, help="local directory")
    parser.add_argument("--preset", default="align_b7_bert_base")
    args = parser.parse_args()

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(args.tpu)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    main(
        tf.distribute.TPUStrategy(resolver),
        args.data,
        args.vocabulary,
        args.checkpoints,
        args.output,
        args.preset,
        load_recipe("coyo700m"),
    )
