"""A small model in Hugging Face's layout, for all tests of the directory."""

import pytest


@pytest.fixture(scope="session")
def reference():
    """A random `AlignModel` of transformers."""
    pytest.importorskip("torch", reason="The comparison needs PyTorch")
    pytest.importorskip("transformers", reason="It needs transformers")
    from huggingface_models import make_align

    return make_align()


@pytest.fixture(scope="session")
def directory(reference, tmp_path_factory):
    """The model with its processor, as transformers saves them."""
    from huggingface_models import make_processor

    directory = tmp_path_factory.mktemp("huggingface") / "align"
    reference.save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def converted(directory):
    """The same model in this package."""
    from align_keras import AlignDualEncoder

    return AlignDualEncoder.from_preset(str(directory))
