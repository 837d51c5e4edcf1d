"""`align-keras export`: turn a preset directory into a model for serving."""

import json

from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="PRESET_DIR",
        help="preset directory of a trained model",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory to write; TensorFlow Serving expects its name to be a "
        "number, such as models/align/1",
    )
    parser.add_argument(
        "--format",
        choices=("saved_model", "onnx", "litert"),
        default="saved_model",
        help="saved_model takes files and strings; onnx and litert hold the "
        "towers alone (default: saved_model)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="precision of computations and stored weights (default: as "
        "trained)",
    )
    group = parser.add_argument_group("SavedModel only")
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="names of classes, one on each line or in JSON; adds the "
        "signature classify",
    )
    group.add_argument(
        "--templates",
        metavar="FILE",
        help="JSON list of prompts with {} for the name of a class (default: "
        "those of --classes, or the name alone)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="labels that classify returns for an image (default: 5)",
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="refuse larger images (default: 32 million)",
    )
    group.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        metavar="N",
        help="batch sizes to time (default: 1 8)",
    )
    group.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help="timed requests of each kind; 0 for none (default: 20)",
    )
    add_json(parser)


def run(args):
    """Export the model and report what was written."""
    from align_keras.serving.export import export

    result = export(
        args.model,
        args.output,
        form=args.format,
        precision=args.precision,
        classes=args.classes,
        templates=args.templates,
        top_k=args.top_k,
        max_pixels=args.max_pixels,
        batch_sizes=args.batch_sizes,
        runs=args.runs,
    )
    if args.json:
        print(json.dumps(result))
        return
    print(f"Wrote `{args.output}`, {result['bytes'] / 1e6:.1f} MB.")
    if args.format != "saved_model":
        print(f"Files: {', '.join(result['files'])}.")
        return
    print(f"Signatures: {', '.join(result['signatures'])}.")
    if not result["warmup"]:
        print(
            "No warm-up requests for TensorFlow Serving: to get them, "
            '`pip install "align-keras[serving]"` and export again.'
        )
    for row in result["latency_ms"]:
        print(
            "{signature}, batch of {batch_size}: {p50} ms (median), {p99} ms "
            "(99th percentile)".format(**row)
        )
