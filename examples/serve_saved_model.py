"""Compare images with texts, using an exported model.

    python serve_saved_model.py MODEL bus.jpg cat.png --text "a bus" "a cat"

MODEL is a directory that `align-keras export` or `model.export` wrote. The
script needs only TensorFlow and TensorFlow Text: the model contains the
weights, the vocabulary and the preprocessing.
"""

import argparse
from pathlib import Path

import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's operations)

parser = argparse.ArgumentParser()
parser.add_argument("model", help="directory of the SavedModel")
parser.add_argument("images", nargs="+", type=Path)
parser.add_argument("--text", nargs="+", required=True)
args = parser.parse_args()

model = tf.saved_model.load(args.model)

# Each tower has its own signature: `encode_image` takes the bytes of image
# files, `encode_text` strings. Both return vectors of length 1.
images = model.signatures["encode_image"](
    image_bytes=tf.constant([path.read_bytes() for path in args.images])
)["embeddings"]
texts = model.signatures["encode_text"](texts=tf.constant(args.text))[
    "embeddings"
]

# Their dot products are cosine similarities. The signature `serving_default`
# does all of this in one call.
similarities = tf.matmul(images, texts, transpose_b=True).numpy()
for path, row in zip(args.images, similarities, strict=True):
    print(path)
    for text, similarity in zip(args.text, row, strict=True):
        print(f"  {similarity:6.3f}  {text}")
