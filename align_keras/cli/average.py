"""`align-keras average`: average a model before and after fine-tuning."""

import json
import logging

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_json
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path

logger = logging.getLogger("align_keras")


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "first",
        type=ModelPath,
        metavar="A",
        help="preset of the model before fine-tuning",
    )
    parser.add_argument(
        "second",
        type=ModelPath,
        metavar="B",
        help="preset of the model after fine-tuning",
    )
    parser.add_argument(
        "--weight",
        type=bounded(float, least=0, most=1),
        metavar="SHARE",
        help="share of B in the average that is written, such as 0.4",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="instead, measure the averages at every tenth on both tasks, and "
        "write sweep.json and sweep.png",
    )
    parser.add_argument(
        "--old-data",
        type=InputPath,
        metavar="TFRECORDS",
        help="for --sweep: data of the task that A was trained for, a "
        "directory or glob",
    )
    parser.add_argument(
        "--new-data",
        type=InputPath,
        metavar="TFRECORDS",
        help="for --sweep: data of the task that B was trained for",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="preset directory of the average, or where the sweep is written",
    )
    add_allow_outside(parser)
    parser.add_argument(
        "--batch-size",
        type=bounded(int, least=1),
        metavar="N",
        help="for --sweep: images per call of the network (default: 64)",
    )
    add_json(parser)


def run(args):
    """Write one average, or measure a sweep of them."""
    if args.sweep == (args.weight is not None):
        raise ValueError(
            "Give either `--weight`, to write one average, or `--sweep`, to "
            f"measure many. Received: weight={args.weight}, sweep={args.sweep}"
        )
    data = args.old_data, args.new_data
    if (None in data) if args.sweep else any(data):
        raise ValueError(
            "`--sweep` needs both `--old-data` and `--new-data`, and nothing "
            f"else takes them. Received: old_data={args.old_data}, "
            f"new_data={args.new_data}, sweep={args.sweep}"
        )
    for option, value in (
        ("--allow-outside", args.allow_outside),
        ("--batch-size", args.batch_size is not None),
    ):
        if value and not args.sweep:
            raise ValueError(
                f"`{option}` is for the data of `--sweep`: averaging two "
                "presets reads no data. Leave it out."
            )
    if args.sweep:
        from align_keras.evaluation.results import plain
        from align_keras.evaluation.sweep import sweep

        result = plain(
            sweep(
                args.first,
                args.second,
                *data,
                args.output,
                batch_size=64 if args.batch_size is None else args.batch_size,
                allow_outside=args.allow_outside,
            )
        )
    else:
        from align_keras.training.averaging import average

        average(args.first, args.second, args.weight, args.output)
        logger.info("The average is in %s", args.output)
        result = {"model": args.output, "weight": args.weight}
    if args.json:
        print(json.dumps(result))
