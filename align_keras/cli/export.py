"""`align-keras export`: turn a preset directory into a model for serving."""

import json

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_json
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path
from align_keras.serving.export_options import check_export


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "--model",
        type=ModelPath,
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
        choices=("saved_model", "onnx", "openvino", "litert"),
        default="saved_model",
        help="saved_model takes files and strings; the others hold the towers "
        "alone (default: saved_model)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        help="precision of computations and stored weights; int8 is for onnx "
        "and openvino (default: as trained)",
    )
    parser.add_argument(
        "--calibrate",
        type=InputPath,
        metavar="DATA",
        help="images with captions, as for `pack`: int8 takes its ranges from "
        "some of them, and is compared with float32 on others",
    )
    group = parser.add_argument_group("SavedModel only")
    group.add_argument(
        "--classes",
        type=InputPath,
        metavar="FILE",
        help="names of classes, one on each line or in JSON; adds the "
        "signature classify",
    )
    group.add_argument(
        "--templates",
        type=InputPath,
        metavar="FILE",
        help="JSON list of prompts with {} for the name of a class (default: "
        "those of --classes, or the name alone)",
    )
    group.add_argument(
        "--top-k",
        type=bounded(int, least=1),
        metavar="N",
        help="labels that classify returns for an image (default: 5)",
    )
    group.add_argument(
        "--max-pixels",
        type=bounded(int, least=1),
        metavar="N",
        help="refuse larger images (default: 32 million)",
    )
    group.add_argument(
        "--batch-sizes",
        type=bounded(int, least=1),
        nargs="+",
        metavar="N",
        help="batch sizes to time (default: 1 8)",
    )
    group.add_argument(
        "--runs",
        type=bounded(int, least=0),
        metavar="N",
        help="timed requests of each kind; 0 for none (default: 20)",
    )
    add_json(parser)


def run(args):
    """Export the model and report what was written."""
    options = {
        "classes": args.classes,
        "templates": args.templates,
        "top_k": args.top_k,
        "max_pixels": args.max_pixels,
        "batch_sizes": args.batch_sizes,
        "runs": args.runs,
    }
    check_export(args.format, args.precision, args.calibrate, **options)
    from align_keras.serving.export import export

    calibration = None
    if args.calibrate:
        from align_keras.evaluation.datasets import captioned

        calibration = captioned(args.calibrate)
    result = export(
        args.model,
        args.output,
        form=args.format,
        precision=args.precision,
        calibration=calibration,
        **options,
    )
    if args.json:
        print(json.dumps(result))
        return
    print(f"Wrote `{args.output}`, {result['bytes'] / 1e6:.1f} MB.")
    if args.format != "saved_model":
        print(f"Files: {', '.join(result['files'])}.")
        if args.precision == "int8":
            print(describe_int8(result))
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


def describe_int8(result):
    """Say in words how int8 compares with float32."""
    lines = [f"Compared with float32 on {result['pairs']} other pairs:"]
    for name, reason in (
        ("images_skipped", "that do not decode"),
        ("images_without_caption", "without a caption"),
    ):
        if result[name]:
            lines.append(f"  left out, images {reason}: {result[name]}")
    for tower in ("image", "text"):
        cosine = result[f"{tower}_cosine"]
        lines.append(
            f"  cosine of {tower} vectors: {cosine['mean']:.4f} (mean), "
            f"{cosine['min']:.4f} (smallest)"
        )
    for name, recall in result["recall"].items():
        lines.append(
            f"  {name.replace('_', ' ')}: {recall['float32']:.1%} in float32, "
            f"{recall['int8']:.1%} in int8"
        )
    return "\n".join(lines)
