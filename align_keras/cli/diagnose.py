"""`align-keras diagnose`: show what happens inside a dual encoder."""

import json

from align_keras.cli.evaluate import shared_options
from align_keras.cli.options import bounded
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_named_model(parser)
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory for diagnosis.json and the page, index.html",
    )
    shared_options.add_embedding(parser)
    shared_options.add_captioned(parser)
    parser.add_argument(
        "--temperature",
        type=bounded(float, above=0),
        metavar="T",
        help="what cosines are divided by (default: that of the model)",
    )
    parser.add_argument(
        "--softmax-batch",
        type=bounded(int, least=1),
        metavar="N",
        help="images in the softmax that gives the true match its probability "
        "(default: the batch size of the run that contains the model, or 256)",
    )
    parser.add_argument(
        "--k",
        type=bounded(int, least=1),
        default=10,
        metavar="K",
        help="nearest neighbours of a query that count for hubness (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--examples",
        type=bounded(int, least=0),
        default=24,
        metavar="N",
        help="images to show whose nearest caption is wrong (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=bounded(int, least=0),
        default=0,
        help="seed of the samples (default: %(default)s)",
    )


def run(args):
    """Diagnose the model and print the numbers."""
    data = shared_options.captioned(args)
    from align_keras.evaluation import diagnose
    from align_keras.evaluation.diagnosis_page import describe_diagnosis

    found = diagnose(
        args.model,
        data,
        args.output,
        temperature=args.temperature,
        softmax_batch=args.softmax_batch,
        k=args.k,
        examples=args.examples,
        seed=args.seed,
        batch_size=args.batch_size,
        progress=not args.json,
        cache=args.cache,
    )
    if args.json:
        print(json.dumps(found))
        return
    print(f"{describe_diagnosis(found)}\nThe page is {args.output}/index.html")
