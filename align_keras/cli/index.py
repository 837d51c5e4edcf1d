"""`align-keras index`: build a searchable directory from vectors."""

import json

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "vectors",
        type=InputPath,
        metavar="VECTORS",
        help="directory that `align-keras embed` wrote",
    )
    parser.add_argument(
        "--model",
        type=ModelPath,
        required=True,
        metavar="DIR",
        help="the model that embedded them; it is copied into the index",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="INDEX",
        help="directory to write",
    )
    parser.add_argument(
        "--kind",
        default="auto",
        choices=("auto", "exact", "ivf-pq", "hnsw", "qdrant"),
        help="auto is exact up to 250,000 vectors, hnsw up to 4,000,000, "
        "ivf-pq above (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        type=InputPath,
        metavar="FILE",
        help="names of classes into which the page can classify an image, one "
        "on each line or in JSON",
    )
    parser.add_argument(
        "--templates",
        type=InputPath,
        metavar="FILE",
        help="JSON list of prompts with {} for the name of a class (default: "
        "those of --labels, or the name alone)",
    )
    parser.add_argument(
        "--qdrant",
        metavar="URL",
        help="server for the kind qdrant (default: Qdrant embedded in the "
        "index)",
    )
    parser.add_argument(
        "--collection",
        metavar="NAME",
        help="name of the collection in Qdrant (default: align_keras)",
    )
    add_json(parser)


def run(args):
    """Build the index and describe it."""
    if args.templates and not args.labels:
        raise ValueError(
            "--templates applies to the names of classes: name a file with "
            "--labels too."
        )
    from align_keras.classes import read_classes
    from align_keras.classes import read_templates
    from align_keras.search import build_index

    labels, templates = [], None
    if args.labels:
        classes = read_classes(args.labels, distinct=True)
        labels, templates = classes.names, classes.templates
    if args.templates:
        templates = read_templates(args.templates)
    about = build_index(
        args.vectors,
        args.output,
        args.model,
        kind=args.kind,
        labels=labels,
        templates=templates or ("{}",),
        qdrant=args.qdrant,
        collection=args.collection,
    )
    if args.json:
        print(json.dumps(about))
        return
    kind = about["kind"]
    if "recall@10" in about["settings"]:
        kind += f" (finds {about['settings']['recall@10']:.1%} of the nearest)"
    print(
        f"`{args.output}` holds {about['count']} vectors of {about['dim']} "
        f"values, kind {kind}. Search it:\n"
        f'    align-keras search {args.output} --text "a red bus"\n'
        f"    align-keras serve {args.output}"
    )
