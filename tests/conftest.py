"""Shared helpers of the tests: small models, and processes of their own."""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

# CPU kernels of oneDNN round differently with the shape of a batch.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# With libtpu installed, JAX would look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))
from shortcuts import decode_plainly
from shortcuts import optimise_graphs
from towers import THOROUGH

# Two copies of LLVM, Triton's and TensorFlow's, end in a segmentation fault.
# PyTorch needs Triton on GPUs alone, and brings it everywhere.
WITHOUT_TRITON = str(ROOT / "tests" / "helpers" / "without_triton")
sys.path.insert(0, WITHOUT_TRITON)
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [WITHOUT_TRITON, os.environ.get("PYTHONPATH")])
)
DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items):
    if THOROUGH:
        return
    reason = "takes long, and joins what others show; ALIGN_THOROUGH=1 runs it"
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def graphs_as_they_are():
    """Leave graphs as they are traced.

    Processes that tests start optimise them, as those of users, unless they
    say otherwise.
    """
    optimise_graphs(False)
    # What is imported by now stays, and need not be looked through again.
    gc.freeze()


@pytest.fixture
def any_model(monkeypatch):
    """Let commands take any name for that of a model."""
    from align_keras.cli import options

    monkeypatch.setattr(options, "may_be_preset", lambda name: True)


@pytest.fixture
def optimised_graphs():
    """Optimise graphs, to give the same bits as a process of its own."""
    optimise_graphs(True)
    yield
    optimise_graphs(False)


@pytest.fixture(scope="module")
def plain_decoder():
    """Decode by one operation, where tests are not about images."""
    with pytest.MonkeyPatch.context() as patch:
        decode_plainly(patch.setattr)
        yield


@pytest.fixture(scope="module")
def eager_steps():
    """Take steps eagerly: tracing one takes longer than running a dozen."""
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module", autouse=True)
def memory_given_back():
    """Give the system back what the tests of a file have freed."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def data_directory():
    """Directory of real photographs and rating files, where there is one."""
    if not DATA.is_dir():
        pytest.skip(f"There are no test data in {DATA}")
    return DATA


@pytest.fixture
def run_script():
    """Run a Python script in a fresh process and return its output."""

    def run(script, *arguments, timeout=600, check=True, **environment):
        result = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
            cwd=ROOT,
        )
        if check and result.returncode:
            pytest.fail(f"{script} failed:\n{result.stdout}\n{result.stderr}")
        return result

    return run


@pytest.fixture
def tiny_model():
    """A dual encoder that compiles in seconds; its steps are not random."""
    import keras

    from align_keras import AlignDualEncoder
    from align_keras import BertTextEncoder

    def build(**kwargs):
        keras.utils.set_random_seed(0)
        images = keras.Input((32, 32, 3), name="images")
        features = keras.layers.Conv2D(8, 3, strides=4)(images)
        features = keras.layers.BatchNormalization()(features)
        features = keras.layers.ReLU()(features)
        text_encoder = BertTextEncoder(50, 1, 2, 16, 32, dropout=0.0)
        # Fresh token vectors are so small that all texts are nearly alike.
        tokens = np.random.default_rng(0).normal(size=(50, 16))
        text_encoder.token_embedding.embeddings.assign(tokens)
        return AlignDualEncoder(
            keras.Model(images, features),
            text_encoder,
            **{"embedding_dim": 24, **kwargs},
        )

    return build


@pytest.fixture
def pairs():
    """Random inputs of a dual encoder."""

    def make(batch, size=32, length=8, seed=0):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(2, length + 1, (batch, 1))
        mask = (np.arange(length) < lengths).astype("int32")
        return {
            "images": rng.uniform(-1, 1, (batch, size, size, 3)).astype(
                "float32"
            ),
            "token_ids": rng.integers(5, 50, (batch, length)).astype("int32")
            * mask,
            "padding_mask": mask,
        }

    return make
