"""Store the parts of converted weights that our network does not use.

Converting a model back must reproduce the original files. Unused tensors,
such as BERT's pooler, and configuration fields that mean nothing here are
kept in a separate file next to the weights.
"""

import json
from pathlib import Path

import numpy as np

FILE = "carried.npz"
_CONFIG = "config.json"


class Carried:
    """Unused tensors and the original configuration of a converted model.

    Args:
        tensors: dict from name to NumPy array.
        config: dict. The configuration, unchanged.
    """

    def __init__(self, tensors, config):
        self.tensors = tensors
        self.config = config

    def write(self, directory):
        """Write the tensors and configuration to a preset directory."""
        config = np.array(json.dumps(self.config))
        with open(Path(directory) / FILE, "wb") as file:
            np.savez(file, **{_CONFIG: config}, **self.tensors)

    @classmethod
    def read(cls, directory):
        """Read them from a preset directory; return `None` without a file."""
        path = Path(directory) / FILE
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            # `write` does not compress, and a small compressed file could
            # expand to any size.
            if any(member.compress_type for member in file.zip.infolist()):
                raise ValueError(
                    f"`{path}` is compressed, as no file of align_keras is: "
                    "remove it, or convert the model again."
                )
            tensors = dict(file)
        return cls(tensors, json.loads(str(tensors.pop(_CONFIG))))
