"""Recall and false positives of both methods for near-duplicates.

    python benchmarks/near_duplicates.py ../shared/data/photos [--model PRESET]

Half of the photographs are the test set, and distorted copies of all of them
are the training images. Recall is the share of the test set's copies that are
found; false positives are the share of the other half's copies that are found.
Without `--model`, the embedder is an EfficientNet-B0 with fresh weights, minus
its mean over the test set. This shows that the search works, but not what a
trained tower finds.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps

from align_keras.curation.embedding_duplicates import embedding_near_duplicates
from align_keras.curation.embedding_duplicates import load_embedder
from align_keras.curation.perceptual_hash import hamming_distance
from align_keras.curation.perceptual_hash import perceptual_hash


def recompressed(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cropped(image, part):
    width, height = image.size
    x, y = round(width * part / 2), round(height * part / 2)
    return image.crop((x, y, width - x, height - y))


def resized(image, factor):
    return image.resize([max(8, round(side * factor)) for side in image.size])


def recoloured(image):
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, red, green))


DISTORTIONS = {
    "the same file": lambda image: image,
    "half the size": lambda image: resized(image, 0.5),
    "an eighth of the size": lambda image: resized(image, 0.125),
    "JPEG of quality 50": lambda image: recompressed(image, 50),
    "JPEG of quality 10": lambda image: recompressed(image, 10),
    "cropped by 4 %": lambda image: cropped(image, 0.04),
    "cropped by 10 %": lambda image: cropped(image, 0.10),
    "cropped by 25 %": lambda image: cropped(image, 0.25),
    "mirrored": ImageOps.mirror,
    "brighter by half": lambda image: ImageEnhance.Brightness(image).enhance(
        1.5
    ),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "channels exchanged": recoloured,
}


def fresh_tower(test_images):
    """Make an embedder of an untrained tower, minus its mean output."""
    import keras

    from align_keras import EfficientNetBackbone

    keras.utils.set_random_seed(0)
    tower = EfficientNetBackbone.from_preset("efficientnet_b0")

    def embed(images):
        small = [Image.fromarray(one).resize((96, 96)) for one in images]
        pixels = np.stack(small).astype("float32") / 127.5 - 1
        features = keras.ops.convert_to_numpy(tower(pixels, training=False))
        return features.reshape(len(images), -1, features.shape[-1]).mean(1)

    mean = embed(test_images).mean(0)
    return lambda images: embed(images) - mean


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", help="an ALIGN preset with weights")
    parser.add_argument("--distances", type=int, nargs=2, default=(3, 8))
    parser.add_argument("--cosine", type=float, default=0.975)
    args = parser.parse_args()
    files = sorted(args.photos.glob("*.JPEG"))
    photos = [Image.open(file).convert("RGB") for file in files]
    for photo in photos:
        photo.thumbnail((800, 800))
    tests = [np.asarray(photo) for photo in photos[::2]]
    hashes = np.array([perceptual_hash(test) for test in tests])
    mirrors = np.array([perceptual_hash(test[:, ::-1]) for test in tests])
    embedder = load_embedder(args.model or fresh_tower(tests))
    vectors = embedder(tests)
    print(f"{len(tests)} test images, {len(photos)} copies each.")
    kinds = [f"{d} bits{m}" for m in ("", ", mirrored") for d in args.distances]
    print(f"| copies | {' | '.join(kinds)} | embedding |")
    print("|---" * (len(kinds) + 2) + "|")
    for name, distort in DISTORTIONS.items():
        copies = [np.asarray(distort(photo)) for photo in photos]
        own = np.array([perceptual_hash(copy) for copy in copies])
        cells = []
        for known in (hashes, np.concatenate([hashes, mirrors])):
            distances = hamming_distance(own[:, None], known[None])
            for allowed in args.distances:
                cells.append(rates((distances <= allowed).any(1)))
        found, _, _ = embedding_near_duplicates(
            embedder(copies), vectors, cosine=args.cosine
        )
        near = np.zeros(len(copies), bool)
        near[found] = True
        cells.append(rates(near))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def rates(near):
    """Return recall and false positives, in per cent."""
    return f"{100 * near[::2].mean():.0f} / {100 * near[1::2].mean():.0f}"


if __name__ == "__main__":
    main()
