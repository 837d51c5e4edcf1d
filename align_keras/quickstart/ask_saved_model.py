"""Ask an exported ALIGN model which images fit some words.

    python ask_saved_model.py SAVED_MODEL IMAGES "a red star" "a blue ring"

Needs tensorflow and tensorflow-text and nothing else; copy it where you like.
"""

import json
import pathlib
import sys

import tensorflow as tf
import tensorflow_text  # noqa: F401  Registers the tokenizer's operations.


def main(saved_model, images, *texts):
    """Print the best image of a folder for each text, as JSON lines."""
    paths = sorted(pathlib.Path(images).glob("*.jpg"))
    served = tf.saved_model.load(saved_model)
    similarities = served.signatures["serving_default"](
        image_bytes=tf.constant([path.read_bytes() for path in paths]),
        texts=tf.constant(texts),
    )["similarities"].numpy()
    for text, column in zip(texts, similarities.T, strict=True):
        best = int(column.argmax())
        answer = {
            "text": text,
            "image": str(paths[best]),
            "score": float(column[best]),
        }
        print(json.dumps(answer))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
