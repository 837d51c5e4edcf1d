"""`align-keras classify`: tell which class an image shows."""

import json
import logging
from pathlib import Path

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_allow_outside

logger = logging.getLogger("align_keras")


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "image", metavar="IMAGE", help="image file, or a folder of images"
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="CLASS",
        help='names of the classes, such as "a cat" "a dog"',
    )
    parser.add_argument(
        "--model",
        type=ModelPath,
        required=True,
        help="preset directory with weights, SavedModel, or a handle such as "
        "hf://kakaobrain/align-base",
    )
    parser.add_argument(
        "--classes",
        type=InputPath,
        metavar="FILE",
        help="names of classes, instead of CLASS: one on each line, or JSON",
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='prompt with {} for the name, such as "a photo of {}"; several '
        "are averaged",
    )
    add_allow_outside(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )


def run(args):
    """Print the classes of each image, most probable first."""
    if bool(args.names) == bool(args.classes):
        raise ValueError(
            "Give the classes either as arguments or as a file with "
            f"`--classes`. Received: {args.names}, classes={args.classes}"
        )
    for name in args.names:
        if args.names.count(name) > 1:
            raise ValueError(
                f"The class {name!r} is given twice: leave one of them out."
            )
    if not Path(args.image).exists():
        raise FileNotFoundError(f"There is no image or folder `{args.image}`.")

    from align_keras.classes import classify
    from align_keras.classes import read_classes
    from align_keras.data.find_source import held_in
    from align_keras.embedding import load_embedder
    from align_keras.io.file_names import list_images
    from align_keras.io.folders import check_member

    images, left_out = [args.image], None
    if Path(args.image).is_dir():

        def left_out(image, error):
            logger.warning("Image %s is left out: %s", image, error)
            images.remove(image)

        names = list_images(args.image, args.allow_outside)
        for name in set(held_in(args.image, args.allow_outside)) - {*names}:
            logger.warning("%s is left out: give one folder of images", name)
        images = [str(Path(args.image, name)) for name in names]
        for image in list(images):
            try:
                check_member(args.image, image, args.allow_outside)
            except OSError as error:
                left_out(image, error)
        if not images:
            raise FileNotFoundError(
                f"`{args.image}` holds no images that can be read."
            )

    classes, templates = args.names, None
    if args.classes:
        listed = read_classes(args.classes, distinct=True)
        classes, templates = listed.names, listed.templates
    probabilities = classify(
        load_embedder(args.model),
        list(images),
        classes,
        args.template or templates or ("{}",),
        left_out,
    )
    labels = [name if isinstance(name, str) else name[0] for name in classes]
    found = {
        image: dict(
            sorted(
                zip(labels, map(float, row), strict=True),
                key=lambda item: -item[1],
            )
        )
        for image, row in zip(images, probabilities, strict=True)
    }
    if args.json:
        print(json.dumps(found))
        return
    for image, row in found.items():
        if len(found) > 1:
            print(image)
        for name, probability in row.items():
            print(f"{probability:7.2%}  {name}")
