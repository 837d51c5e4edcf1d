"""The example of zero-shot classification, on a small local directory."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="The comparison needs PyTorch")
pytest.importorskip("transformers", reason="It needs transformers")

from huggingface_models import make_align
from huggingface_models import make_processor

EXAMPLE = (
    Path(__file__).resolve().parents[2]
    / "examples"
    / "zero_shot_classification.py"
)


def test_zero_shot_classification(tmp_path, capsys):
    reference = make_align(temperature_init_value=0.1)
    processor = make_processor()
    directory = str(tmp_path / "align")
    reference.save_pretrained(directory)
    processor.save_pretrained(directory)
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), "uint8")
    photo = str(tmp_path / "photo.png")
    Image.fromarray(coarse).resize((346, 346)).save(photo)
    names = ["bus", "dog", "red house"]
    main = runpy.run_path(str(EXAMPLE))["main"]
    found = main([photo, *names, "--model", directory])
    inputs = processor(
        images=Image.open(photo),
        text=[f"a photo of a {name}." for name in names],
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = reference(**inputs).logits_per_image.softmax(-1)[0]
    assert list(found) == names
    assert np.ptp(list(found.values())) > 0.02
    np.testing.assert_allclose(list(found.values()), expected, atol=5e-3)
    lines = capsys.readouterr().out.splitlines()
    best = max(found, key=found.get)
    assert lines[-3].endswith(best) and "%" in lines[-3]
