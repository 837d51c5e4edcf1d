"""Print class probabilities for an image, using a pretrained model.

    python examples/zero_shot_classification.py photo.jpg cat dog bird

The weights come from Hugging Face and are converted as they are read. This
needs the extra `huggingface`. `--model` selects another model, such as a
directory that `align-keras train` wrote.
"""

import argparse

from keras import ops

from align_keras import AlignDualEncoder


def classify(image, names, model="hf://kakaobrain/align-base"):
    """Return the probability of each class name."""
    model = AlignDualEncoder.from_preset(model)
    image = model.encode_image(image)
    texts = model.encode_text([f"a photo of a {name}." for name in names])
    similarities = ops.matmul(image, ops.transpose(texts))[0]
    probabilities = ops.softmax(similarities / model.temperature)
    return dict(zip(names, map(float, probabilities), strict=True))


def main(arguments=None):
    """Print the classes, most probable first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image file")
    parser.add_argument("names", nargs="+", help="names of the classes")
    parser.add_argument("--model", default="hf://kakaobrain/align-base")
    args = parser.parse_args(arguments)
    found = classify(args.image, args.names, args.model)
    for name in sorted(found, key=found.get, reverse=True):
        print(f"{found[name]:7.2%}  {name}")
    return found


if __name__ == "__main__":
    main()
