"""Where something is to be written, no address becomes a directory of it."""

import argparse
from pathlib import Path

import pytest
from tiny_align import VOCABULARY

from align_keras import AlignImageConverter
from align_keras import AlignTokenizer
from align_keras.cli import make_parser
from align_keras.data import pack
from align_keras.embedding import embed
from align_keras.embedding import score
from align_keras.io.atomic import atomic_directory
from align_keras.io.atomic import atomic_file
from align_keras.io.locks import directory_lock
from align_keras.io.paths import local_path
from align_keras.quickstart import write_scenes
from align_keras.search import write_index
from align_keras.serving import export_saved_model
from align_keras.training import train

# Stores of which there is none, or that hold what others write.
ADDRESSES = (
    "nowhere9://run",
    "file:///run",
    "https://host/run",
    "hf://user/run",
)
# Options of these names say what is written, and no other ones do.
WRITTEN = {"output", "workdir", "export", "contact_sheet", "cache"}
WRITTEN |= {"destination", "json_output"}


def refused(address):
    scheme, rest = address.split("://")
    rest = rest.lstrip("/")
    return pytest.raises(ValueError, match=f"`{scheme}://{rest}` is an address")


def train_there(path):
    train("align_b0_bert_tiny", "small", data="nowhere", workdir=path)


WRITERS = {
    "a file": lambda path: atomic_file(path).__enter__(),
    "a directory": lambda path: atomic_directory(path).__enter__(),
    "a lock": lambda path: directory_lock(path).__enter__(),
    "pack": lambda path: pack("nowhere", path),
    "train": train_there,
    "embed": lambda path: embed("nowhere", path, "align_b0_bert_tiny"),
    "score": lambda path: score("nowhere", path, "align_b0_bert_tiny"),
    "index": lambda path: write_index([], 1, path, None),
    "export": lambda path: export_saved_model(None, path),
    "scenes": lambda path: write_scenes(path, 1),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_writer_takes_an_address(
    tmp_path, monkeypatch, address, kind, writer
):
    monkeypatch.chdir(tmp_path)
    with refused(address):
        writer(kind(address))
    assert not list(tmp_path.iterdir())


def test_no_preset_is_saved_to_an_address(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    tokenizer = AlignTokenizer(VOCABULARY)
    for saved in (model, model.text_encoder, tokenizer, AlignImageConverter()):
        with refused("nowhere9://bucket/model"):
            saved.save_to_preset("nowhere9://bucket/model")
    for exported in (model, model.text_encoder):
        with refused("nowhere9://bucket/model"):
            exported.export("nowhere9://bucket/model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path",
    ["run", "a:b/run", "./gs:", "/tmp/s3/x", "c:/run", "C:\\run", "a//b"],
)
def test_other_names_are_paths(path):
    assert local_path(path) == Path(path)


def commands(parser, name=()):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from commands(inner, (*name, word))
            return
    yield name, parser


def test_options_that_are_written_to_refuse_addresses():
    found = set()
    for name, parser in commands(make_parser()):
        for action in parser._actions:
            if action.dest not in WRITTEN or action.nargs == 0:
                continue
            found.add(name[0])
            with pytest.raises(argparse.ArgumentTypeError, match="an address"):
                action.type("nowhere9://bucket/x.json")
            # An address of a store is taken as it is.
            assert action.type("gs://b/x.json") == "gs://b/x.json"
    # Every command that writes anything is among them.
    assert found >= {
        "quickstart",
        "curate",
        "download",
        "vocab",
        "pack",
        "plan",
        "train",
        "average",
        "evaluate",
        "ablate",
        "export",
        "convert",
        "embed",
        "score",
        "index",
        "search",
    }
