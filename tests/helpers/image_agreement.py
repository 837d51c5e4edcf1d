"""What every decoder makes of an image file, against what its making tells.

    python tests/helpers/image_agreement.py --count 6000

draws so many files, prints a table of what `pack` and an export do with them,
and names each on which decoders differ. docs/data.md has that table.
"""

import argparse
import collections
import sys
import warnings

import numpy as np
import tensorflow as tf
from image_files import draw_file

from align_keras.data.stored_image import image_to_store
from align_keras.io.images import decode_with_pillow
from align_keras.preprocessing.decode import decode_in_graph
from align_keras.serving.untrusted_images import bounded

MAX_PIXELS = 10_000
FATES = ("kept", "encoded", "skipped")


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def in_export(contents):
    return decode_in_graph(bounded(contents, MAX_PIXELS))


def with_pillow(contents):
    return decode_with_pillow(contents, MAX_PIXELS)


def attempt(decode, contents):
    """The pixels, or `None` where the file is refused."""
    try:
        return np.asarray(decode(contents))
    except (ValueError, tf.errors.InvalidArgumentError):
        return None


def examine(file):
    """Check that no decoder shows another image than the others.

    Returns:
        Pair: one of `FATES`, what `pack` does with the file; and whether an
        export reads it.
    """
    pillow = attempt(with_pillow, file.contents)
    if "no known range" in file.kind:
        assert pillow is None, file.kind
    if file.pixels is not None and file.known:
        assert pillow is not None, file.kind
    if file.pixels is not None and pillow is not None:
        assert_shows(file, pillow)
    for decode in (decode_in_graph, in_export):
        pixels = attempt(decode, file.contents)
        if pixels is not None:
            np.testing.assert_array_equal(pixels, pillow, err_msg=file.kind)
    exported = pixels is not None
    try:
        contents, *size = image_to_store(lambda: file.contents, MAX_PIXELS)
    except ValueError:
        assert pillow is None, file.kind
        return "skipped", exported
    assert pillow is not None, file.kind
    assert tuple(size[::-1]) == pillow.shape[:2], file.kind
    pixels = decode_in_graph(contents)
    np.testing.assert_array_equal(pixels, pillow, err_msg=file.kind)
    again = with_pillow(contents)
    np.testing.assert_array_equal(again, pillow, err_msg=file.kind)
    return "kept" if contents == file.contents else "encoded", exported


def assert_shows(file, pixels):
    """Check pixels against those that are known from a file's making."""
    assert pixels.shape == file.pixels.shape, file.kind
    off = np.abs(np.asarray(pixels, int) - file.pixels).mean()
    assert off <= file.tolerance, file.kind


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # Pillow says much of broken tags of TIFF.
    warnings.simplefilter("ignore", UserWarning)
    generator = np.random.default_rng(options.seed)
    counts, wrong = collections.defaultdict(collections.Counter), 0
    for _ in range(options.count):
        file = draw_file(generator)
        try:
            fate, exported = examine(file)
        except AssertionError as error:
            wrong += 1
            print(f"{file.kind}: {str(error).splitlines()[0]}")
            continue
        for name in (file.kind.split()[0], "all"):
            counts[name].update(["drawn", fate, *["exported"] * exported])
    columns = ("drawn", *FATES, "exported")
    print(" | ".join(("| files", *columns)), "|")
    print("|---" * (1 + len(columns)) + "|")
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        row = (str(counts[name][column]) for column in columns)
        print(" | ".join((f"| {name}", *row)), "|")
    print(f"{wrong} of {options.count} files were shown differently.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
