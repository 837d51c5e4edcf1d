"""Let the model take raw images and texts, by running its preprocessor."""

import types

import keras

from align_keras.backend.padding import LoadedBatches
from align_keras.backend.padding import MappedBatches
from align_keras.backend.padding import is_distributed
from align_keras.backend.padding import pack
from align_keras.backend.padding import to_numpy
from align_keras.backend.padding import unpack
from align_keras.keras_hub_internals import DataAdapter


def is_float(images):
    """Whether images are float arrays, which need no preprocessing."""
    return "float" in str(getattr(images, "dtype", ""))


def is_raw(inputs):
    """Whether inputs need to go through the preprocessor."""
    if not isinstance(inputs, dict):
        return True
    if "texts" in inputs:
        return True
    return "images" in inputs and not is_float(inputs["images"])


def named_pair(parts):
    """Turn a tuple or list of images and texts into a dict.

    Raises:
        ValueError: The tuple or list holds something else.
    """
    if len(parts) != 2 or isinstance(parts[0], dict):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            "A tuple or list must hold the images and the texts. Pass their "
            "weights as `sample_weight`; only what a data set yields, and "
            "`validation_data`, may be (inputs, None, sample_weight). "
            f"Received: a {type(parts).__name__} of {kinds}"
        )
    return dict(zip(("images", "texts"), parts, strict=True))


class RawInputs:
    """Runs `preprocessor` on the inputs of `fit`, `evaluate` and `predict`.

    Raw inputs are a dict of `"images"` and `"texts"`, or a tuple of both, with
    texts as strings or images that are not floats. Inputs that the network
    accepts directly pass unchanged.
    """

    def fit(self, x=None, *args, validation_data=None, **kwargs):
        if validation_data is not None:
            validation_data = self._prepared(validation_data)
        return super().fit(
            self._prepared_inputs(x),
            *args,
            validation_data=validation_data,
            **kwargs,
        )

    def evaluate(self, x=None, *args, **kwargs):
        return super().evaluate(self._prepared_inputs(x), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        return super().predict(self._prepared_inputs(x), *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        return super().train_on_batch(self._at_once(x), *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        return super().test_on_batch(self._at_once(x), *args, **kwargs)

    def predict_on_batch(self, x):
        return super().predict_on_batch(self._at_once(x))

    def prepare(self, inputs):
        """Turn raw inputs into the inputs of the model.

        Args:
            inputs: dict with `"images"` and `"texts"`, or a tuple of both, see
                `AlignPreprocessor`. Inputs that the model already accepts,
                such as float images, are returned unchanged.

        Returns:
            A dict of tensors.

        Raises:
            ValueError: Texts are given both as strings and as tokens.
        """
        if isinstance(inputs, (tuple, list)):
            inputs = named_pair(inputs)
        if not is_raw(inputs):
            return inputs
        twice = sorted({"token_ids", "padding_mask"} & set(inputs))
        if "texts" in inputs and twice:
            raise ValueError(
                'Pass texts either as strings, `"texts"`, or as tokens: one of '
                f"the two would be ignored. Received, besides texts: {twice}"
            )
        preprocessor = self.require_preprocessor()
        ready = {
            name: value
            for name, value in inputs.items()
            if name != "texts" and (name != "images" or is_float(value))
        }
        raw = {k: _listed(v) for k, v in inputs.items() if k not in ready}
        return {**ready, **preprocessor(raw)}

    def require_preprocessor(self):
        """Return the preprocessor, or raise `ValueError` if there is none."""
        if self.preprocessor is None:
            raise ValueError(
                "The model has no preprocessor, so it takes float images and "
                "token ids, not files and strings: load it from a preset "
                "directory that holds one, or set `model.preprocessor` to an "
                "`AlignPreprocessor`."
            )
        return self.preprocessor

    def _prepare_batch(self, data):
        if _is_pair(data):
            data = (tuple(data[:2]), None, *data[2:])
        inputs, mask, weight = unpack(data)
        return pack(self.prepare(inputs), mask, weight)

    def _prepared(self, data):
        """Prepare validation data, which may come with weights."""
        if isinstance(data, list):
            data = tuple(data)
        if _is_pair(data):
            data = (tuple(data[:2]), None, *data[2:])
        if not isinstance(data, tuple):
            return self._prepared_inputs(data)
        return (self._prepared_inputs(data[0]), *data[1:])

    def _prepared_inputs(self, x):
        """Prepare inputs of any kind, and large ones batch by batch."""
        if x is None or isinstance(x, DataAdapter) or is_distributed(x):
            return x
        if hasattr(x, "element_spec"):
            if not _spec_is_raw(x.element_spec):
                return x
            self.require_preprocessor()

            def run(*data):
                return self._prepare_batch(data[0] if len(data) == 1 else data)

            return x.map(run, num_parallel_calls=-1)
        if isinstance(x, keras.utils.PyDataset):
            if self.preprocessor is None:
                # On JAX, an error within an epoch would lose the weights.
                self._prepare_batch(x[0])
            return _PreparedDataset(x, self._prepare_batch)
        if isinstance(x, types.GeneratorType):
            # Keras requires tuples.
            batches = (to_numpy(self._prepare_batch(data)) for data in x)
            return (b if isinstance(b, tuple) else (b,) for b in batches)
        if _is_grain(x):
            return x.map(lambda data: to_numpy(self._prepare_batch(data)))
        if not isinstance(x, (dict, tuple, list)):
            return x
        return self._at_once(x, but_arrays=True)

    def _at_once(self, x, but_arrays=False):
        """Prepare arrays; `but_arrays` leaves image arrays for later."""
        if isinstance(x, (tuple, list)):
            x = named_pair(x)
        if not isinstance(x, dict) or not is_raw(x):
            return x
        self.require_preprocessor()
        images = {}
        if but_arrays and _is_array(x.get("images")):
            images = {"images": x["images"]}
        rest = {name: v for name, v in x.items() if name not in images}
        return {**images, **to_numpy(self.prepare(rest))}

    def _adapter(self, x, y, **kwargs):
        adapter = super()._adapter(x, y, **kwargs)
        if _is_torch_loader(x):
            return LoadedBatches(adapter, self._prepare_batch)
        if isinstance(x, dict) and is_raw(x):
            return MappedBatches(adapter, self._prepare_batch)
        return adapter


class _PreparedDataset(keras.utils.PyDataset):
    """Prepares the batches of another dataset."""

    def __init__(self, dataset, prepare):
        super().__init__(
            dataset.workers,
            dataset.use_multiprocessing,
            dataset.max_queue_size,
        )
        self._dataset = dataset
        self._prepare = prepare

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return to_numpy(self._prepare(self._dataset[index]))

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def _is_torch_loader(x):
    return any(
        cls.__name__ == "DataLoader"
        and cls.__module__.startswith("torch.utils.data")
        for cls in type(x).__mro__
    )


def _is_grain(x):
    """Whether `x` is a dataset of Grain, which has a method `map`."""
    return hasattr(x, "map") and any(
        cls.__module__.split(".")[0] == "grain" for cls in type(x).__mro__
    )


def _is_pair(data):
    """Whether a tuple is `(images, texts)` instead of `(x, y)`."""
    if not isinstance(data, tuple) or len(data) < 2:
        return False
    return not isinstance(data[0], (dict, tuple)) and _is_text(data[1])


def _is_text(value):
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], (str, bytes))
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind in ("U", "S", "O") or "string" in repr(
        getattr(value, "dtype", None)
    )


def _is_array(value):
    return hasattr(value, "shape") and not _is_text(value)


def _listed(value):
    """Turn an array of strings or a pandas column into a list."""
    if hasattr(value, "tolist") and _is_text(value):
        return value.tolist()
    return value


def _spec_is_raw(spec):
    if isinstance(spec, tuple) and not _is_pair(spec):
        spec = spec[0]
    return is_raw(spec) if isinstance(spec, (dict, tuple)) else False
