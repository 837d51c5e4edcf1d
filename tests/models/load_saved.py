"""Load models in a process that has used no class of the package yet."""

import sys
from pathlib import Path

import align_keras  # isort: skip
import keras
import numpy as np

directory, *names = sys.argv[1:]
directory = Path(directory)
assert "align_keras.models" not in sys.modules
for name in names:
    inputs = dict(np.load(directory / f"{name}_inputs.npz"))
    loaded = {"keras": keras.saving.load_model(directory / f"{name}.keras")}
    assert type(loaded["keras"]) is getattr(align_keras, name)
    if (directory / name).is_dir():
        cls = getattr(align_keras, name)
        loaded["preset"] = cls.from_preset(str(directory / name))
    for form, model in loaded.items():
        found = model(inputs.get("", inputs))
        found = found if isinstance(found, dict) else {"": found}
        if getattr(model, "preprocessor", None) is not None:
            found["texts"] = model.encode_text(["a red bus"])
        np.savez(
            directory / f"{name}_{form}.npz",
            **{k: keras.ops.convert_to_numpy(v) for k, v in found.items()},
        )
    if loaded["keras"].compiled:
        assert type(loaded["keras"].optimizer) is align_keras.Lamb
