"""`align-keras curate`: clean image–text pairs by rules."""

import argparse
import json

from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_json
from align_keras.cli.options import output_path


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders or globs: Parquet, CSV, TSV, JSONL, WARC, WAT",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        metavar="DIR",
        help="directory to write the result to",
    )
    parser.add_argument(
        "--config",
        default="align",
        metavar="RULES",
        help="align, coyo, conceptual_captions, web_text, web_images, or a "
        "YAML file (default: %(default)s)",
    )
    parser.add_argument(
        "--test-images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="test sets for the near-duplicate rules: folders, TFRecord files, "
        "or files of perceptual hashes",
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        default=[],
        metavar="DIR",
        help="directories that `align-keras score` wrote, for the similarity "
        "rule",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images, which are then measured and hashed",
    )
    parser.add_argument(
        "--engine",
        default="duckdb",
        choices=["duckdb", "spark"],
        help="default: %(default)s, in this process",
    )
    parser.add_argument(
        "--master", metavar="URL", help="Spark's master, such as yarn"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory to use, such as 2GiB"
    )
    parser.add_argument(
        "--stages",
        metavar="DIR",
        help="directory of intermediate tables, which runs may share "
        "(default: .stages in the output)",
    )
    parser.add_argument(
        "--discard-stages",
        action="store_true",
        help="remove this run's intermediate tables at the end",
    )
    parser.add_argument(
        "--print-sql",
        metavar="DIALECT",
        help="print the rules as SQL (bigquery, duckdb, spark …) and exit",
    )
    parser.add_argument(
        "--explain",
        metavar="ROW_ID",
        help="say why a row is not in a finished output, and exit",
    )
    add_allow_outside(parser)
    add_json(parser)


def run(args):
    """Curate the inputs, print SQL, or explain a row."""
    from align_keras import curation

    if args.print_sql:
        _refuse_others(args, "print_sql", "config")
        print(curation.print_sql(args.config, args.print_sql))
        return
    if not args.output:
        raise ValueError("`--output` is needed: the directory of the result.")
    if args.explain is not None:
        _refuse_others(args, "explain", "output", "json")
        found = curation.explain(args.output, args.explain)
        print(json.dumps(found) if args.json else _describe(found))
        return
    if not args.inputs:
        raise ValueError("Give at least one INPUT: a file, folder or glob.")
    manifest = curation.curate(
        args.inputs,
        args.output,
        config=args.config,
        engine=args.engine,
        master=args.master,
        memory=args.memory,
        test_images=args.test_images,
        image_folder=args.images,
        scores=args.scores,
        stages=args.stages,
        discard_stages=args.discard_stages,
        allow_outside=args.allow_outside,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps(manifest))
        return
    print(
        f"{manifest['kept']:,} of {manifest['rows']:,} pairs are kept, in "
        f"{args.output}/kept; audit.html next to it shows why the others are "
        "not."
    )


def _refuse_others(args, asked, *taken):
    """Refuse options that have no effect beside the one that is asked for."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if name not in (asked, *taken) and getattr(args, name) != default:
            word = "INPUT" if name == "inputs" else f"--{name}"
            raise ValueError(
                f"`{word.replace('_', '-')}` has no effect with "
                f"`--{asked.replace('_', '-')}`: leave it out. "
                f"Received: {getattr(args, name)}"
            )


def _describe(found):
    lines = []
    for row in found:
        name = row["id"] or row["row_id"]
        if row.get("score") is not None:
            name = f"{name} (score {row['score']:.6g})"
        if not row["rules"]:
            lines.append(f"Row {name} is kept.")
            continue
        lines.append(f"Row {name} is dropped by:")
        lines += [f"  {rule['name']}: {rule['why']}" for rule in row["rules"]]
    return "\n".join(lines)
