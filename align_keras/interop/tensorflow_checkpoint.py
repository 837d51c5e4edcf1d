"""Read checkpoints in TensorFlow's own format, using TensorFlow."""

from align_keras.io.file_names import glob_visible


class TensorFlowCheckpoint:
    """The variables of a checkpoint, with the interface of `Tensors`.

    Args:
        directory: string or `pathlib.Path`. It holds a single checkpoint, or
            a file `checkpoint` that names the latest.
    """

    def __init__(self, directory):
        self.prefix = find_prefix(directory)
        self.source = f"`{self.prefix}`"
        import tensorflow as tf

        self._reader = tf.train.load_checkpoint(self.prefix)
        self.shapes = {
            name: tuple(shape)
            for name, shape in self._reader.get_variable_to_shape_map().items()
        }

    def read(self, name):
        """Return the NumPy array of that name."""
        return self._reader.get_tensor(name)


def find_prefix(directory):
    """Return the path of a directory's checkpoint without its suffixes.

    Raises:
        ValueError: There is no checkpoint, or there are several and no file
            `checkpoint` names the latest.
    """
    found = glob_visible(directory, "*.index")
    if len(found) == 1:
        return str(found[0].with_suffix(""))
    import tensorflow as tf

    latest = tf.train.latest_checkpoint(str(directory))
    if latest is not None:
        return latest
    raise ValueError(
        f"`{directory}` must hold one TensorFlow checkpoint (a file *.index "
        "and its data), or a file `checkpoint` that names the latest. "
        f"Received: {', '.join(path.name for path in found) or 'none'}."
    )
