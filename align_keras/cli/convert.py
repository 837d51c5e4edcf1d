"""`align-keras convert`: convert weights from and to other libraries."""

import json

from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "source",
        type=ModelPath,
        metavar="SRC",
        help="directory or handle, such as hf://kakaobrain/align-base",
    )
    parser.add_argument(
        "destination",
        type=output_path,
        metavar="DST",
        help="directory to write",
    )
    parser.add_argument(
        "--to",
        choices=("preset", "huggingface"),
        default="preset",
        help="format of DST (default: preset, for this package)",
    )
    parser.add_argument(
        "--antialias",
        choices=("yes", "no"),
        help="whether to average pixels when shrinking an image: yes as "
        "Hugging Face does, no as the public ALIGN checkpoints were trained "
        "(default: what SRC says)",
    )
    add_json(parser)


def run(args):
    """Convert the weights and report what was written."""
    from align_keras.interop import convert

    antialias = None if args.antialias is None else args.antialias == "yes"
    model = convert(args.source, args.destination, args.to, antialias)
    result = {
        "output": args.destination,
        "format": args.to,
        "model": type(model).__name__,
        "parameters": model.count_params(),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"Wrote `{args.destination}`: {result['model']} with "
            f"{result['parameters']:,} parameters."
        )
