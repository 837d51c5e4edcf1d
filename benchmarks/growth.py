"""How the main costs grow, with fitted exponents.

    python benchmarks/growth.py

Measures the time of a training step over the batch size, of the text tower over
the text length, of the image tower over the images, of retrieval over the
images, of reading over the records, and of a step over the devices that share a
batch of fixed size. One exponent is fitted to all sizes of a row, and one to
the last two, where constant costs matter least.
"""

import os

import networks
import numpy as np
import tables
import turns

SIZES = {
    "two training steps over pairs (96 pixels)": ("step", [8, 16, 32, 64]),
    "text tower over tokens (32 texts)": ("tokens", [32, 64, 128, 256]),
    "image tower over images (96 pixels)": ("images", [4, 8, 16, 32, 64]),
    "retrieval over images (5 texts each)": (
        "retrieval",
        [500, 1000, 2000, 4000],
    ),
    "reading over records": ("records", [500, 1000, 2000, 4000]),
    "two steps of replicas that share 64 pairs (JAX, host devices)": (
        "replicas",
        [1, 2, 4, 8],
    ),
}
# The expected exponents; all others are 1. Retrieval compares all pairs.
EXPECTED = {"retrieval": 2, "replicas": 0}


def step(size):
    """Prepare a training step of `size` pairs."""
    return _step(size, "tensorflow")


def _step(size, backend):
    os.environ["KERAS_BACKEND"] = backend

    from align_keras import Lamb

    model = networks.keras_model("tiny")
    model.compile(Lamb(1e-3))
    batch = networks.batch_of(size, 96)
    data = networks.over_and_over(batch)
    return lambda: model.fit(data, steps_per_epoch=2, verbose=0)


def replicas(size):
    """Prepare a step of 64 pairs on `size` simulated devices of the host."""
    flag = f"--xla_force_host_platform_device_count={size}"
    os.environ["XLA_FLAGS"] = flag
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if size > 1:
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
    return _step(64, "jax")


def tokens(size):
    """Prepare the text tower for 32 texts of `size` tokens."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    from align_keras import backend

    model = networks.keras_model("b0")
    texts = {
        "token_ids": tf.fill((32, size), 7),
        "padding_mask": tf.ones((32, size), "int32"),
    }
    encode = backend.compile_inference(model, model.encode_text)
    return lambda: np.asarray(encode(texts))


def images(size):
    """Prepare the image tower for `size` images."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    from align_keras import backend

    model = networks.keras_model("tiny")
    images = tf.constant(networks.batch_of(size, 96)["images"])
    encode = backend.compile_inference(model, model.encode_image)
    return lambda: np.asarray(encode(images))


def retrieval(size):
    """Prepare recall for `size` images with five texts each."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from align_keras.evaluation.retrieval import retrieval_metrics

    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, 256), "float32")
    texts = rng.standard_normal((5 * size, 256), "float32")
    owners = np.arange(5 * size) // 5
    return lambda: retrieval_metrics(images, texts, owners)


def records(size):
    """Prepare to read and decode a data set of `size` records once."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tempfile
    from pathlib import Path

    import input_pipeline
    from PIL import Image

    from align_keras.data import pack

    directory = Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), "uint8")
    (directory / "photos").mkdir()
    Image.fromarray(noise).save(directory / "photos" / "0.jpg")
    lines = ["filepath,caption", *["0.jpg,a photo"] * size]
    captions = directory / "captions.csv"
    captions.write_text("\n".join(lines) + "\n")
    pack(directory / "photos", directory / "packed", captions)
    dataset = input_pipeline.training_data(directory / "packed", False)
    return lambda: sum(1 for _ in dataset.take(size // input_pipeline.BATCH))


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    text = (
        "| | sizes | milliseconds | exponent | of the last two | expected |\n"
    )
    text += "|---|---|---|---:|---:|---:|\n"
    for title, (name, sizes) in SIZES.items():
        if args.only and name not in args.only:
            continue
        sides = [
            turns.Side(size, f"growth:{name}", {"size": size}) for size in sizes
        ]
        results, _ = turns.in_turns(sides, args.rounds)
        seconds = [np.median(results[size]) for size in sizes]
        whole = turns.fitted_exponent(sizes, seconds)
        last = turns.fitted_exponent(sizes[-2:], seconds[-2:])
        text += (
            f"| {title} | {', '.join(map(str, sizes))} | "
            f"{', '.join(f'{1e3 * value:.3g}' for value in seconds)} | "
            f"{whole:.2f} | {last:.2f} | {EXPECTED.get(name, 1)} |\n"
        )
    tables.publish(args, "Medians:", text, "growth")


if __name__ == "__main__":
    main()
