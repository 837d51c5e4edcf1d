"""The command line, with one module per command and no logic of its own."""

import argparse
import contextlib
import io
import logging
import os
import sys

from align_keras import __version__
from align_keras.cli.options import OutputFile
from align_keras.cli.options import add_commands
from align_keras.cli.options import check_inputs
from align_keras.io.locks import directory_lock
from align_keras.io.messages import end_progress
from align_keras.io.messages import messages_shown
from align_keras.io.stores import is_store

# Commands and their one-line help, in the order of a typical workflow.
COMMANDS = {
    "quickstart": "draw scenes, train on them, and search (a few minutes)",
    "presets": "list the model presets",
    "recipes": "list the training recipes, or the fields of one",
    "curate": "clean image-text pairs by rules, and account for every row",
    "download": "fetch the images of kept pairs with img2dataset",
    "vocab": "learn a WordPiece vocabulary from texts",
    "pack": "turn images with captions into TFRecord shards",
    "plan": "tell whether a run fits, how long it takes and what it costs",
    "train": "train a model, or resume an interrupted run",
    "average": "average a model with the one it was fine-tuned from",
    "evaluate": "measure a model",
    "diagnose": "show what happens inside a model, on one page",
    "ablate": "train and measure variants of a model, side by side",
    "export": "write a SavedModel, ONNX or LiteRT model to serve",
    "convert": "convert weights from or to another library",
    "upload": "publish a model with a card on Hugging Face's hub",
    "embed": "turn images into files of vectors",
    "score": "tell how well captions fit their images",
    "index": "build a search index from vectors",
    "search": "find images by words, by an image, or by both",
    "serve": "serve a web page that searches an index",
    "classify": "tell which of the given classes an image shows",
}


def make_parser():
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="align-keras",
        description="Train, evaluate and serve ALIGN in Keras.",
    )
    parser.add_argument(
        "--version", action="version", version=f"align-keras {__version__}"
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    add_commands(parsers, __name__, COMMANDS)
    return parser


def main(arguments=None):
    """Run a command and return its exit status.

    Args:
        arguments: list of strings. Defaults to those of the process.

    Returns:
        int. 0 on success; 2 after an expected error, of the arguments, the
        input or the machine, which is printed on one line; 130 after an
        interrupt; or a status that the command returned.
    """
    options = make_parser().parse_args(arguments)
    # TensorFlow's start-up messages would hide those of the command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may contain bytes that are not text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with (
            messages_shown(progress=not getattr(options, "json", False)),
            contextlib.ExitStack() as stack,
        ):
            check_inputs(options)
            for value in vars(options).values():
                # In a store, a file appears only when it is complete.
                if isinstance(value, OutputFile) and not is_store(value):
                    stack.enter_context(directory_lock(value, beside=True))
            return options.run(options) or 0
    except _expected_errors() as error:
        end_progress()
        # Errors of Keras and TensorFlow span several lines.
        reason = " ".join(str(error).split())
        print(f"align-keras: error: {reason}", file=sys.stderr, flush=True)
        _end_without_others(2)
        return 2
    except KeyboardInterrupt:
        end_progress()
        print("align-keras: interrupted", file=sys.stderr)
        return 130


def _end_without_others(status):
    """Exit at once if JAX would make this process wait for the others."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)


def _expected_errors():
    """Return errors caused by the input or the machine, not by a bug."""
    expected = (ValueError, OSError, ImportError, FloatingPointError)
    if "tensorflow" in sys.modules:
        # A damaged file during training, or too little memory.
        expected += (sys.modules["tensorflow"].errors.OpError,)
    if "duckdb" in sys.modules:
        # Too little memory, or no disk space to spill to.
        expected += (sys.modules["duckdb"].Error,)
    return expected
