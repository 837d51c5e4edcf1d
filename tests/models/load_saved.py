"""Load a model in a process that has used no class of the package yet."""

import sys

import align_keras  # isort: skip
import keras
import numpy as np

path, inputs, outputs = sys.argv[1:]
assert "align_keras.models" not in sys.modules
model = keras.saving.load_model(path)
assert type(model) is align_keras.AlignDualEncoder
assert type(model.optimizer) is align_keras.Lamb
found = model.predict(dict(np.load(inputs)), verbose=0)
texts = keras.ops.convert_to_numpy(model.encode_text(["a red bus"]))
np.savez(outputs, **found, texts=texts)
