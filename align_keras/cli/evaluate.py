"""`align-keras evaluate`: one sub-command for each evaluation."""

import json


def add_arguments(parser):
    """Declare the evaluations and their options."""
    evaluations = parser.add_subparsers(
        dest="evaluation", metavar="EVALUATION", required=True
    )
    retrieval = evaluations.add_parser(
        "retrieval",
        help="find the captions of pictures, and the picture of a caption",
        description="Recall of image-text retrieval in both directions.",
    )
    _add_common(retrieval)
    retrieval.add_argument(
        "--data",
        required=True,
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote",
    )
    retrieval.set_defaults(evaluate=_retrieval, describe=_describe_retrieval)


def run(args):
    """Run the chosen evaluation and print its result."""
    result = args.evaluate(args)
    print(json.dumps(result) if args.json else args.describe(result))


def _add_common(parser):
    parser.add_argument(
        "--model",
        required=True,
        metavar="PRESET_DIR",
        help="preset directory of a trained model",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="pictures in one call of the network (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )


def _retrieval(args):
    from align_keras import AlignDualEncoder
    from align_keras.evaluation import evaluate_retrieval

    model = AlignDualEncoder.from_preset(args.model)
    return evaluate_retrieval(model, args.data, args.batch_size)


def _describe_retrieval(result):
    lines = [
        f"{result['images']} pictures, {result['texts']} captions "
        f"({result['images_without_text']} pictures without a caption, "
        f"{result['pictures_skipped']} left out as not readable)",
        f"{'':26}{'model':>8}{'chance':>9}",
    ]
    for name, value in result.items():
        chance = result.get(f"chance_{name}")
        if chance is not None:
            label = name.replace("_", " ")
            lines.append(f"{label:26}{value:8.1%}{chance:9.2%}")
    for way in ("image_to_text", "text_to_image"):
        name = f"{way}_median_rank"
        lines.append(f"{name.replace('_', ' '):26}{result[name]:8.1f}")
    return "\n".join(lines)
