"""Options that several commands share."""

import argparse
import glob
import importlib
import operator
import os

from align_keras.io.paths import local_path
from align_keras.io.stores import is_store
from align_keras.models.shipped_presets import may_be_preset
from align_keras.models.shipped_presets import unknown_preset

# Those of `align_keras.training.strategies`, which imports Keras.
STRATEGIES = ("auto", "one-device", "mirrored", "multi-worker", "tpu")


def add_commands(parsers, package, commands):
    """Declare commands, each implemented by a module.

    Args:
        parsers: the object that `ArgumentParser.add_subparsers` returned.
        package: string. The package that contains one module for each command,
            with `add_arguments(parser)` and `run(args)`.
        commands: dict from the name of a command to its one-line help.
    """
    for name, text in commands.items():
        parser = parsers.add_parser(name, help=text, description=text)
        module = name.replace("-", "_")
        module = importlib.import_module(f"{package}.{module}")
        module.add_arguments(parser)
        # A command with subcommands has no `run`; its subcommands do.
        if hasattr(module, "run"):
            parser.set_defaults(run=module.run)


def output_path(text):
    """Parse the path of an output, and refuse an invalid one at once."""
    try:
        if not is_store(text):
            local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def bounded(kind, least=None, most=None, above=None):
    """Return a parser of numbers that refuses those out of bounds.

    A command would refuse them too, but only after seconds of imports.

    Args:
        kind: `int` or `float`.
        least: The smallest number, or `None`.
        most: The largest number, or `None`.
        above: What the number must exceed, or `None`.
    """

    def parse(text):
        value = kind(text)
        for bound, words, holds in (
            (least, "at least", operator.ge),
            (most, "at most", operator.le),
            (above, "above", operator.gt),
        ):
            if bound is not None and not holds(value, bound):
                raise argparse.ArgumentTypeError(
                    f"must be {words} {bound}. Received: {text}"
                )
        return value

    # The name that argparse gives to what is no number.
    parse.__name__ = kind.__name__
    return parse


class OutputFile(str):
    """An output file that `main` locks while the command runs."""


def output_file(text):
    """Parse the path of an output file, which `main` will lock."""
    return OutputFile(output_path(text))


class InputPath(str):
    """A path or glob of an input, which `main` looks for at the start."""

    def check(self, name, options):
        """Refuse an input that is not there.

        Args:
            name: string. The name of the option.
            options: `argparse.Namespace` of all options.
        """
        if not _may_exist(self):
            raise FileNotFoundError(
                f"`{name}`: there is no file or folder `{self}`, and no file "
                "that it matches as a pattern. A relative path starts from "
                f"`{os.getcwd()}`."
            )


class FolderOrSplit(InputPath):
    """An input, or with `--tfds` the name of a split."""

    def check(self, name, options):
        if options.tfds is None:
            super().check(name, options)


class ModelPath(InputPath):
    """The path of a model, or the name of a preset."""

    def check(self, name, options):
        named = not os.path.dirname(self)
        if not _may_exist(self) and not (named and may_be_preset(self)):
            raise unknown_preset(self)


def check_inputs(options):
    """Refuse inputs that are not there, before a command loads a framework.

    Loading takes seconds, and a mistyped path is the most common error. What
    an input contains is checked by the command.

    Args:
        options: `argparse.Namespace`. Each `InputPath` becomes a plain string.

    Raises:
        FileNotFoundError: There is no such input.
        ValueError: There is no such model.
    """
    for name, value in vars(options).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, InputPath):
                item.check(name, options)
        setattr(options, name, _plain(value))


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, InputPath) else value


def _may_exist(path):
    """Return false only for local paths and globs that match nothing."""
    # Python's globs know no braces, TensorFlow's do.
    if "://" in path or path.startswith("~") or "{" in path:
        return True
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return any(glob.iglob(path))
    except (OSError, ValueError):
        # The command says why it cannot be read.
        pass
    return True


def add_json(parser):
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )


def add_batch_size(parser):
    parser.add_argument(
        "--batch-size",
        type=bounded(int, least=1),
        default=64,
        metavar="N",
        help="images per call of the network (default: %(default)s)",
    )


def add_allow_outside(parser):
    """Declare `--allow-outside`, for commands that read a folder."""
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="also read files outside the folder, to which links and names "
        "such as ../a.jpg lead",
    )


def add_verify(parser):
    """Declare `--verify`, for commands that read an index."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the whole index first, and compare its checksums",
    )


def add_qdrant(parser):
    """Declare `--qdrant`, for commands that read an index."""
    parser.add_argument(
        "--qdrant",
        metavar="URL",
        help="server that holds the vectors, if the index was built with one",
    )


def add_parts(parser):
    """Declare the options of commands that process a source in parts."""
    parser.add_argument(
        "--model",
        type=ModelPath,
        required=True,
        metavar="MODEL",
        help="preset directory of a trained model, a SavedModel, or the name "
        "or handle of a preset with weights",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        required=True,
        metavar="DIR",
        help="directory to write",
    )
    add_batch_size(parser)
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="default: auto; not with --spark",
    )
    parser.add_argument(
        "--spark",
        metavar="MASTER",
        help="run on this Spark master instead, such as local[2] or yarn",
    )
    parser.add_argument(
        "--images-per-shard",
        type=bounded(int, least=1),
        default=4096,
        metavar="N",
        help="images of a folder per output file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=bounded(int, least=1),
        default=64_000_000,
        metavar="N",
        help="leave out larger images (default: %(default)s)",
    )
    add_allow_outside(parser)
    add_json(parser)


def parts_options(args, work):
    """Convert the options of `add_parts` to keyword arguments.

    Args:
        args: the parsed options.
        work: callable. Processes one part; used with Spark.
    """
    return {
        "output": args.output,
        "model": args.model,
        "batch_size": args.batch_size,
        "images_per_shard": args.images_per_shard,
        "max_pixels": args.max_pixels,
        "allow_outside": args.allow_outside,
        "progress": not args.json,
        **_strategy_or_tasks(args, work),
    }


def _strategy_or_tasks(args, work):
    if args.spark and args.strategy:
        raise ValueError(
            "On Spark each task has one device: leave out --strategy or "
            f"--spark. Received: --strategy {args.strategy}"
        )
    if args.spark:
        from align_keras.embedding.spark import make_session
        from align_keras.embedding.spark import on_spark

        return {"run_tasks": on_spark(make_session(args.spark), work)}
    from align_keras.training.strategies import make_strategy

    return {"strategy": make_strategy(args.strategy or "auto")}
