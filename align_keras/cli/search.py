"""`align-keras search`: find images by words, by an image, or by both."""

import json

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_json
from align_keras.cli.options import add_qdrant
from align_keras.cli.options import add_verify
from align_keras.cli.options import bounded
from align_keras.cli.options import output_file


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "index",
        type=InputPath,
        metavar="INDEX",
        help="directory that `align-keras index` wrote",
    )
    parser.add_argument(
        "--text",
        action="append",
        metavar="WORDS",
        help="what the results should show; may be repeated",
    )
    parser.add_argument(
        "--image", type=InputPath, metavar="FILE", help="image to start from"
    )
    parser.add_argument(
        "--minus-text",
        "--minus",
        action="append",
        metavar="WORDS",
        help="what the results should not show; may be repeated",
    )
    for name, default in (("text", 2.0), ("image", 1.0)):
        parser.add_argument(
            f"--{name}-weight",
            type=float,
            default=default,
            metavar="W",
            help="default: %(default)s",
        )
    parser.add_argument(
        "--minus-weight",
        type=float,
        metavar="W",
        help="default: that of --text-weight",
    )
    parser.add_argument(
        "-k",
        type=bounded(int, least=1),
        default=10,
        metavar="N",
        help="number of results (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        type=ModelPath,
        metavar="DIR",
        help="another copy of the index's model; a different model is refused",
    )
    parser.add_argument(
        "--contact-sheet",
        type=output_file,
        metavar="FILE",
        help="also draw the results, as a PNG file",
    )
    add_qdrant(parser)
    add_verify(parser)
    add_json(parser)


def run(args):
    """Search the index and print the results."""
    from align_keras.search import Index

    # Before the model's framework is loaded.
    index = Index(args.index, args.qdrant, args.verify)
    from align_keras.search import draw_results
    from align_keras.search import search

    results = search(
        index,
        text=args.text,
        image=args.image,
        minus_text=args.minus_text,
        text_weight=args.text_weight,
        image_weight=args.image_weight,
        minus_weight=args.minus_weight,
        k=args.k,
        model=args.model,
    )
    if args.contact_sheet:
        draw_results(
            index,
            results,
            args.contact_sheet,
            text=args.text,
            image=args.image,
            minus_text=args.minus_text,
        )
    index.close()
    if args.json:
        print(json.dumps({"results": results}))
        return
    for place, result in enumerate(results, 1):
        line = f"{place:4}  {result['score']:7.4f}  {result['key']}"
        print(f"{line}  {result['text']}".rstrip())
