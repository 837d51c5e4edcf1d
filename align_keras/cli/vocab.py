"""`align-keras vocab`: learn a WordPiece vocabulary from kept texts."""

import json

from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_json
from align_keras.cli.options import output_file


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="the directory that `curate` wrote; or files, folders or globs "
        "of Parquet, CSV, TSV, JSONL, or .txt files with one text per line",
    )
    parser.add_argument(
        "--output",
        type=output_file,
        required=True,
        metavar="FILE",
        help="vocabulary to write",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="number of tokens (default: 100000, or 250000 with "
        "--multilingual)",
    )
    parser.add_argument(
        "--multilingual",
        action="store_true",
        help="use the paper's size for many languages, and keep accents and "
        "vowel signs, as the recipe align_multilingual does",
    )
    parser.add_argument(
        "--text-column", metavar="NAME", help="column of the texts"
    )
    add_allow_outside(parser)
    add_json(parser)


def run(args):
    """Learn the vocabulary and print its size."""
    from align_keras.curation import learn_vocabulary
    from align_keras.curation.vocabulary import MULTILINGUAL_SIZE
    from align_keras.curation.vocabulary import SIZE

    usual = MULTILINGUAL_SIZE if args.multilingual else SIZE
    result = learn_vocabulary(
        args.inputs,
        args.output,
        size=usual if args.size is None else args.size,
        text_column=args.text_column,
        allow_outside=args.allow_outside,
        progress=not args.json,
        strip_accents=not args.multilingual,
    )
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"Wrote {result['tokens']:,} tokens, learned from "
            f"{result['texts']:,} texts, to {args.output}."
        )
