"""`align-keras export`: a preset directory to a SavedModel."""

import json


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
        required=True,
        metavar="DIR",
        help="directory of the SavedModel",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )


def run(args):
    """Export the model and say where it went."""
    from align_keras import AlignDualEncoder
    from align_keras.serving import export_saved_model
    from align_keras.serving.export import SIGNATURES

    model = AlignDualEncoder.from_preset(args.model)
    export_saved_model(model, args.output)
    result = {
        "output": args.output,
        "signatures": list(SIGNATURES),
        "embedding_dim": model.embedding_dim,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"Wrote `{args.output}` with {', '.join(SIGNATURES)}.")
