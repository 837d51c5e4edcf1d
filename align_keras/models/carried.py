"""What converted weights hold and our network has no use for.

Weights that go out again must be what came in. Tensors such as BERT's
pooler, which ALIGN does not use, and fields of the configuration without a
meaning here stay in a file of their own beside the weights.
"""

import json
from pathlib import Path

import numpy as np

FILE = "carried.npz"
_CONFIG = "config.json"


class Carried:
    """Tensors and configuration that pass through unchanged.

    Args:
        tensors: dict from name to NumPy array.
        config: dict, the configuration as it came.
    """

    def __init__(self, tensors, config):
        self.tensors = tensors
        self.config = config

    def write(self, directory):
        """Write the file of a preset directory."""
        config = np.array(json.dumps(self.config))
        with open(Path(directory) / FILE, "wb") as file:
            np.savez(file, **{_CONFIG: config}, **self.tensors)

    @classmethod
    def read(cls, directory):
        """Read the file of a preset directory; `None` where there is none."""
        path = Path(directory) / FILE
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            # As they were written; others could be of any size.
            if any(member.compress_type for member in file.zip.infolist()):
                raise ValueError(
                    f"`{path}` is compressed, as no file of ours is: remove "
                    "it, or convert the model anew."
                )
            tensors = dict(file)
        return cls(tensors, json.loads(str(tensors.pop(_CONFIG))))
