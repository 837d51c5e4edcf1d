"""Speed from photos to training batches, on one core.

    python benchmarks/input_pipeline.py --photos ../shared/data/photos

JPEG files are decoded, resized to 346 pixels and cropped to 289. The limit is
libjpeg-turbo alone, which decodes each file and discards the pixels. All sides
run on the same core with a single thread. `--photos` is a folder with a
`captions.csv`. `--enlarge 3` first makes the photos three times as large, as
they are on the web.
"""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import tables
import turns

SIZE, FULL_SIZE, BATCH = 289, 346, 32


def photos(folder):
    """Read the encoded photos of a folder, as bytes."""
    names = sorted(Path(folder).glob("*.[jJ][pP]*[gG]"))
    return [name.read_bytes() for name in names]


def stay_on_one_core():
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def limit(folder):
    """Prepare decoding only."""
    import simplejpeg

    stay_on_one_core()
    files = photos(folder)

    def run():
        for contents in files:
            simplejpeg.decode_jpeg(contents)

    return run


def ours(folder, packed, fast):
    """Prepare our pipeline, from packed files to batches."""
    stay_on_one_core()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    dataset = training_data(packed, fast)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    batches = iter(dataset.with_options(options))
    return lambda: [next(batches) for _ in range(whole_batches(folder))]


def training_data(packed, fast):
    from align_keras import AlignImageConverter
    from align_keras import AlignPreprocessor
    from align_keras import AlignTokenizer
    from align_keras.data import load_dataset

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo"]
    preprocessor = AlignPreprocessor(
        AlignTokenizer(words),
        AlignImageConverter(SIZE, FULL_SIZE, fast=fast),
        sequence_length=64,
    )
    return load_dataset(packed, preprocessor, BATCH)


def pillow(folder):
    """Prepare the steps of torchvision's transforms in Pillow and NumPy."""
    from PIL import Image

    stay_on_one_core()
    files = photos(folder)
    rng = np.random.default_rng(0)

    def convert(contents):
        image = Image.open(io.BytesIO(contents)).convert("RGB")
        image = image.resize((FULL_SIZE, FULL_SIZE), Image.Resampling.BILINEAR)
        left, top = rng.integers(0, FULL_SIZE - SIZE + 1, 2)
        image = image.crop((left, top, left + SIZE, top + SIZE))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(image).transpose(2, 0, 1)
        return (pixels.astype("float32") / 255 - 0.5) / 0.5

    def run():
        for number in range(whole_batches(folder)):
            start = number * BATCH
            rows = [files[i % len(files)] for i in range(start, start + BATCH)]
            np.stack([convert(contents) for contents in rows])

    return run


def whole_batches(folder):
    return -(-len(list(Path(folder).glob("*.[jJ][pP]*[gG]"))) // BATCH)


def enlarge(folder, factor, output):
    """Write the photos again, `factor` times as wide and as high."""
    import shutil

    from PIL import Image

    shutil.copy(Path(folder) / "captions.csv", output)
    for path in sorted(Path(folder).glob("*.[jJ][pP]*[gG]")):
        image = Image.open(path).convert("RGB")
        sides = [factor * side for side in image.size]
        image = image.resize(sides, Image.Resampling.BICUBIC)
        image.save(Path(output) / path.name, "JPEG", quality=90)


def difference(folder):
    """Measure in grey levels how crops with `fast` differ from the others."""
    import tensorflow as tf

    from align_keras import AlignImageConverter

    sides = {
        "exact": AlignImageConverter(SIZE, FULL_SIZE),
        "fast": AlignImageConverter(SIZE, FULL_SIZE, fast=True),
        "antialiased": AlignImageConverter(SIZE, FULL_SIZE, antialias=True),
    }
    crop = {
        name: tf.function(converter.decode_random_crop, autograph=False)
        for name, converter in sides.items()
    }
    totals = {"exact": [], "antialiased": []}
    for number, contents in enumerate(photos(folder)):
        images = {
            name: function(tf.constant(contents), tf.constant([7, number]))
            for name, function in crop.items()
        }
        for name, values in totals.items():
            gap = np.abs(images["fast"] - images[name]) * 127.5
            values.append((gap.mean(), np.quantile(gap, 0.99), gap.max()))
    return {name: np.mean(values, axis=0) for name, values in totals.items()}


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--enlarge", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = args.photos.resolve()
        if args.enlarge > 1:
            folder = Path(directory) / "photos"
            folder.mkdir()
            enlarge(args.photos, args.enlarge, folder)
        compare(args, str(folder), str(Path(directory) / "packed"))


def compare(args, folder, packed):
    from align_keras.data import pack

    pack(folder, packed, Path(folder) / "captions.csv")
    files = {"folder": folder}
    small = f"{packed}-{FULL_SIZE}"
    pack(folder, small, Path(folder) / "captions.csv", resize=FULL_SIZE)
    mine = {**files, "packed": packed}
    resized = {**files, "packed": small, "fast": False}
    name = "input_pipeline"
    sides = [
        turns.Side("libjpeg-turbo alone", f"{name}:limit", files),
        turns.Side("align_keras", f"{name}:ours", {**mine, "fast": False}),
        turns.Side("align_keras, fast", f"{name}:ours", {**mine, "fast": True}),
        turns.Side(
            f"align_keras, packed --resize {FULL_SIZE}", f"{name}:ours", resized
        ),
        turns.Side("Pillow and NumPy", f"{name}:pillow", files),
    ]
    _, seconds = turns.in_turns(sides, args.rounds, warm_up=2)
    count = len(photos(folder))
    batched = whole_batches(folder) * BATCH
    text = "| | images per second of one core | spread | of the limit |\n"
    text += "|---|---:|---:|---:|\n"
    rates = {
        side: (count if "alone" in side else batched) / np.median(values)
        for side, values in seconds.items()
    }
    for side, rate in rates.items():
        text += (
            f"| {side} | {rate:.0f} | {100 * turns.spread(seconds[side]):.0f} %"
            f" | {100 * rate / rates['libjpeg-turbo alone']:.0f} % |\n"
        )
    for other, (mean, high, most) in difference(folder).items():
        text += (
            f"\n`fast` differs from {other} crops by {mean:.2f} grey levels of "
            f"255 in the mean, 99 % by less than {high:.1f}, at most "
            f"{most:.0f}, as averages over the photos.\n"
        )
    pixels = sum(len(contents) for contents in photos(folder)) / count
    tables.publish(
        args,
        f"{count} photos of {pixels / 1e3:.0f} kB:",
        text,
        f"input-pipeline-{args.enlarge}",
    )


if __name__ == "__main__":
    main()
