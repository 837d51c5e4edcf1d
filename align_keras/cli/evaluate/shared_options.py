"""Options that several evaluations share, and the objects they stand for."""

import argparse
import dataclasses

from align_keras.cli.options import FolderOrSplit
from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_allow_outside
from align_keras.cli.options import add_batch_size
from align_keras.cli.options import add_json
from align_keras.cli.options import bounded
from align_keras.cli.options import output_file
from align_keras.cli.options import output_path


def add_model(parser):
    """Declare the model and the file for its result."""
    add_named_model(parser)
    parser.add_argument(
        "--output",
        type=_result_file,
        metavar="FILE.json",
        help="write the result as JSON, and next to it what `compare` needs",
    )
    add_bootstrap(parser)


def add_named_model(parser):
    """Declare the model."""
    add_json(parser)
    parser.add_argument(
        "--model",
        type=ModelPath,
        required=True,
        metavar="MODEL",
        help="preset directory or handle, SavedModel, or a preset of "
        "KerasHub's CLIP or SigLIP",
    )


def _result_file(name):
    # Refuse the name before hours of work, not after.
    if not name.lower().endswith(".json"):
        raise argparse.ArgumentTypeError(f"{name!r} does not end in .json")
    return output_file(name)


def add_embedding(parser):
    """Declare how images are embedded."""
    add_batch_size(parser)
    parser.add_argument(
        "--cache",
        type=output_path,
        metavar="DIR",
        help="keep vectors here, to resume from them after an interruption",
    )


def add_bootstrap(parser):
    parser.add_argument(
        "--bootstrap",
        type=bounded(int, least=0),
        default=1000,
        metavar="N",
        help="resamples for the intervals (default: %(default)s)",
    )


def add_depths(parser, default):
    parser.add_argument(
        "--k",
        type=bounded(int, least=1),
        nargs="+",
        default=default,
        metavar="K",
        help=f"values of K to measure (default: {' '.join(map(str, default))})",
    )


def add_tfds(parser, example):
    parser.add_argument(
        "--tfds",
        metavar="NAME",
        help=f"a TFDS data set, such as {example}, instead of files",
    )
    add_tfds_directory(parser)


def add_tfds_directory(parser):
    parser.add_argument(
        "--tfds-directory", metavar="DIR", help="where TFDS keeps its data"
    )


def add_name(parser):
    parser.add_argument("--name", help="what to call the data set")


def add_published(parser, tests, data, images):
    """Declare the model, and a test that is read from its published files.

    Args:
        parser: `argparse.ArgumentParser`.
        tests: tuple of strings. Names of the tests.
        data: string. The help for the folder of files.
        images: string. The help for the folder of images.
    """
    add_model(parser)
    add_embedding(parser)
    parser.add_argument(
        "--test", required=True, choices=tests, help="test to run on the data"
    )
    parser.add_argument(
        "--data", type=InputPath, required=True, metavar="FOLDER", help=data
    )
    parser.add_argument(
        "--images", type=InputPath, metavar="FOLDER", help=images
    )
    add_name(parser)
    add_allow_outside(parser)


def add_captioned(parser):
    """Declare images with captions."""
    parser.add_argument(
        "--data",
        type=InputPath,
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote; "
        "a folder of images, with --captions or with a captions.csv or .txt "
        "files in it; or archives or Parquet files, as for `pack`",
    )
    parser.add_argument(
        "--captions",
        type=InputPath,
        metavar="FILE",
        help="caption file, such as dataset_coco.json of Karpathy's splits, "
        "or the directory that `align-keras curate` wrote",
    )
    parser.add_argument(
        "--split",
        help="splits of the caption file or of TFDS (default: test, for TFDS "
        "or a JSON file that names splits)",
    )
    parser.add_argument(
        "--captions-per-image",
        type=bounded(int, least=1),
        metavar="N",
        help="use only the first N captions of an image, from a caption file "
        "or TFDS (default: 5)",
    )
    add_tfds(parser, "coco_captions")
    add_name(parser)
    add_allow_outside(parser)


def add_labelled(parser, *parts):
    """Declare labelled images for the parts train, data or validation."""
    for part in parts:
        parser.add_argument(
            f"--{part}",
            type=FolderOrSplit,
            required=part != "validation",
            metavar="FOLDER",
            help="folder with one subfolder of images for each class; with "
            "--tfds, a split",
        )
    add_tfds(parser, "oxford_flowers102")
    add_name(parser)
    add_allow_outside(parser)


def add_runs(parser, default):
    """Declare the options of repeated training runs."""
    parser.add_argument(
        "--workdir",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory for checkpoints",
    )
    parser.add_argument(
        "--runs",
        type=bounded(int, least=1),
        default=default,
        metavar="N",
        help="number of seeds to average over (default: %(default)s)",
    )
    parser.add_argument("--seed", type=bounded(int, least=0), default=0)


def captioned(args):
    """Open the captioned images that the options name, as a `DataSet`."""
    if (args.tfds is None) == (args.data is None):
        raise ValueError("Give either `--data` or `--tfds`.")
    _check_tfds(args)
    if args.tfds and args.captions:
        refuse("captions", "is for files: a TFDS data set has its own")
    from align_keras.evaluation import datasets

    first = args.captions_per_image
    if not args.tfds:
        return datasets.captioned(
            args.data,
            args.captions,
            args.split,
            args.name,
            first,
            args.allow_outside,
        )
    data = datasets.tfds_captions(
        args.tfds,
        args.split or "test",
        args.tfds_directory,
        first or datasets.CAPTIONS_PER_IMAGE,
    )
    return dataclasses.replace(data, name=args.name or data.name)


def labelled(args, part):
    """Open the labelled images of an option, or return `None`."""
    _check_tfds(args)
    value = getattr(args, part)
    if value is None:
        return None
    from align_keras.evaluation import datasets

    # A result is named after its test images.
    name = args.name if part == "data" else None
    if args.tfds:
        data = datasets.tfds_labels(args.tfds, value, args.tfds_directory)
        return dataclasses.replace(data, name=name or data.name)
    return datasets.class_folders(
        value, name or value.strip("/"), args.allow_outside
    )


def _check_tfds(args):
    if args.tfds_directory and not args.tfds:
        refuse("tfds_directory", "is for `--tfds`: name a data set there too")
    if args.tfds and args.allow_outside:
        refuse("allow_outside", "is for files, not for TFDS")


def refuse(option, reason):
    """Refuse an option that is wrong or would have no effect."""
    raise ValueError(f"`--{option.replace('_', '-')}` {reason}.")


def embedder(args):
    from align_keras.embedding import load_embedder

    return load_embedder(args.model)


def loader(args):
    """Return a function that loads a fresh copy of the model for each run."""
    from align_keras.models import AlignDualEncoder

    return lambda: AlignDualEncoder.from_preset(args.model)


def identity(args):
    """Return a fingerprint of the model's files, or else its handle."""
    from align_keras.embedding.loading import model_fingerprint

    return model_fingerprint(args.model) or args.model


def embedding_options(args):
    return {
        "batch_size": args.batch_size,
        "cache": args.cache,
        "samples": args.bootstrap,
    }


def show(args, result):
    """Print a result, and write it to `--output` if given."""
    from align_keras.evaluation.describe_results import describe_result

    if args.output:
        result.save(args.output)
    print(result.to_json() if args.json else describe_result(result))
