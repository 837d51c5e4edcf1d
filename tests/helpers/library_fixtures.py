"""A tiny trained-looking model, images, and an index of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_align import image_file
from tiny_align import tiny_align

COUNT = 30
TEMPLATES = ["{}", "the {} on a street"]
# Must be shown, and never run.
CAPTION = "a red bus <img src=x onerror=document.body.remove()>"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Images of which one is broken; preset; vectors; index."""
    from align_keras.embedding import embed
    from align_keras.search import build_index

    folder = tmp_path_factory.mktemp("library")
    images = folder / "images"
    (images / "sub").mkdir(parents=True)
    for number in range(COUNT):
        name = f"sub/{number:02d}.jpg" if number % 2 else f"{number:02d}.jpg"
        size = (60 + number, 50)
        (images / name).write_bytes(image_file(number, size))
    (images / "02.txt").write_text(f"{CAPTION}\nanother caption\n")
    (images / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    preset = folder / "preset"
    tiny_align().save_to_preset(str(preset))
    manifest = embed(
        images,
        folder / "vectors",
        preset,
        batch_size=8,
        images_per_shard=12,
        thumbnail_size=32,
    )
    build_index(
        folder / "vectors",
        folder / "index",
        preset,
        labels=["a bus", "a dog", "a house"],
        templates=TEMPLATES,
    )
    return SimpleNamespace(
        folder=folder,
        images=images,
        preset=preset,
        vectors=folder / "vectors",
        index=folder / "index",
        manifest=manifest,
        caption=CAPTION,
        templates=TEMPLATES,
        names=sorted(
            path.relative_to(images).as_posix()
            for path in Path(images).rglob("*.jpg")
            if path.name != "broken.jpg"
        ),
    )


@pytest.fixture(scope="session")
def model(library):
    """The model of the index, loaded once."""
    from align_keras.search import Index

    return Index(library.index).load_model()


@pytest.fixture(scope="session")
def dual_encoder(library):
    """The same model, as Keras knows it: the reference."""
    from align_keras import AlignDualEncoder

    return AlignDualEncoder.from_preset(str(library.preset))


@pytest.fixture(scope="session")
def saved_model(dual_encoder, tmp_path_factory):
    """Its export."""
    path = tmp_path_factory.mktemp("exported") / "model"
    dual_encoder.export(str(path))
    return path


@pytest.fixture(scope="module")
def site(library, model):
    """A client of a page's server with room for many requests."""
    from page_server import running

    from align_keras.search.web.limits import Limits

    limits = Limits(
        upload_bytes=200_000, max_pixels=1_000_000, rate=1e6, burst=1e6
    )
    with running(library, model, limits) as client:
        yield client
