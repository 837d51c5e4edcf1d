"""Raw images and texts in `fit`, `evaluate` and `predict`."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import ContrastiveLoss

WORDS = "a the red blue green bus dog house".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = ["a red bus", "the dog", "a blue house", "green", "a", "the red dog"]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    model = AlignDualEncoder(
        keras.Model(images, keras.layers.Conv2D(6, 3)(images)),
        keras.Model(
            {"token_ids": tokens}, keras.layers.Embedding(20, 6)(tokens)
        ),
        text_pooling="average",
        initial_temperature=0.1,
        preprocessor=AlignPreprocessor(
            AlignTokenizer(VOCABULARY),
            AlignImageConverter(image_size=8),
            sequence_length=6,
        ),
    )
    model.compile(keras.optimizers.SGD(0.0), ContrastiveLoss(0.1))
    return model


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 12, 10, 3), dtype="uint8")


@pytest.fixture(scope="module")
def expected(model, images):
    ready = {
        "images": ops.convert_to_numpy(
            model.preprocessor.image_converter(images)
        ),
        **{
            name: ops.convert_to_numpy(value)
            for name, value in model.preprocessor.tokenize(TEXTS).items()
        },
    }
    embeddings = {
        "image_embeddings": ops.convert_to_numpy(model.encode_image(images)),
        "text_embeddings": ops.convert_to_numpy(model.encode_text(TEXTS)),
    }
    loss = model.evaluate(ready, verbose=0)[0]
    return ready, embeddings, loss


class Batches(keras.utils.PyDataset):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def torch_loader(images):
    data = pytest.importorskip("torch.utils.data")
    rows = [
        {"images": image, "texts": text}
        for image, text in zip(images, TEXTS, strict=True)
    ]
    return data.DataLoader(rows, batch_size=6)


def column(texts):
    return pytest.importorskip("pandas").Series(texts)


def tf_dataset(data):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(data).batch(6)


def kinds_of(images, ready):
    texts = np.array(TEXTS)
    tokens = {name: ready[name] for name in ("token_ids", "padding_mask")}
    return {
        "dict": {"images": images, "texts": TEXTS},
        "strings": {"images": images, "texts": texts},
        "pair": (images, TEXTS),
        "images": {"images": images, **tokens},
        "texts": {"images": ready["images"], "texts": TEXTS},
        "column": {"images": images, "texts": column(TEXTS)},
        "ready": ready,
        "tf dict": tf_dataset({"images": images, "texts": TEXTS}),
        "tf pair": tf_dataset((images, TEXTS)),
        "loader": torch_loader(images),
        "sequence": Batches({"images": images, "texts": TEXTS}),
    }


def test_raw_inputs_go_through_the_preprocessor(model, images, expected):
    ready, embeddings, loss = expected
    for kind, data in kinds_of(images, ready).items():
        found = model.predict(data, verbose=0)
        for name, value in embeddings.items():
            np.testing.assert_allclose(
                found[name], value, atol=1e-5, err_msg=kind
            )
        value = model.evaluate(data, verbose=0, return_dict=True)["loss"]
        assert value == pytest.approx(loss, rel=1e-4), kind
        history = model.fit(data, verbose=0, validation_data=data).history
        assert history["loss"][0] == pytest.approx(loss, rel=1e-4), kind
        assert history["val_loss"][0] == pytest.approx(loss, rel=1e-4), kind
    batch = {"images": images, "texts": TEXTS}
    assert model.train_on_batch(batch)[0] == pytest.approx(loss, rel=1e-4)
    assert model.test_on_batch(batch)[0] == pytest.approx(loss, rel=1e-4)
    assert model.evaluate([images, TEXTS], verbose=0)[0] == pytest.approx(
        loss, rel=1e-4
    )
    with pytest.raises(FileNotFoundError, match="`none.jpg` cannot be read: N"):
        model.fit({"images": ["none.jpg"], "texts": TEXTS[:1]}, verbose=0)
    rows = (batch for _ in range(1))
    assert model.fit(rows, verbose=0).history["loss"][0] == pytest.approx(
        loss, rel=1e-4
    )


def test_the_preprocessor_takes_tensors_beside_strings(model, images, expected):
    ready, _, _ = expected
    tensor = ops.convert_to_tensor(images)
    kinds = [{"images": tensor, "texts": TEXTS}, (tensor, TEXTS)]
    if keras.config.backend() == "tensorflow":
        strings = ops.convert_to_tensor(TEXTS)
        kinds += [{"images": list(images), "texts": strings}]
        kinds += [{"images": images, "texts": strings}]
    for inputs in kinds:
        found = model.preprocessor(inputs)
        for name, value in ready.items():
            np.testing.assert_allclose(
                ops.convert_to_numpy(found[name]), value, atol=1e-5
            )


def test_weights_and_splits_of_raw_inputs(model, images, expected):
    ready, _, loss = expected
    weights = np.array([1, 0, 2, 1, 0, 3], "float32")
    weighted = model.evaluate(ready, sample_weight=weights, verbose=0)[0]
    assert abs(weighted - loss) > 1e-2
    for data in (
        tf_dataset((images, TEXTS, weights)),
        tf_dataset(((images, TEXTS), weights)).map(lambda x, w: (x, None, w)),
    ):
        found = model.fit(data, verbose=0).history["loss"][0]
        assert found == pytest.approx(weighted, rel=1e-4)
    x = {"images": images, "texts": np.array(TEXTS)}
    options = {"validation_split": 0.5, "shuffle": False, "verbose": 0}
    raw = model.fit(x, sample_weight=weights, **options).history
    own = model.fit(ready, sample_weight=weights, **options).history
    for name in ("loss", "val_loss"):
        assert raw[name] == pytest.approx(own[name], rel=1e-4)


def test_the_preprocessor_maps_datasets_of_every_form(model, images, expected):
    ready, _, _ = expected
    weights = np.arange(6, dtype="float32")
    labels = np.arange(6)
    pair = {"images": images, "texts": TEXTS}
    cases = {
        "dict": (pair, 0),
        "pair": ((images, TEXTS), 0),
        "pair and weights": ((images, TEXTS, weights), 2),
        "labels": ((pair, labels), 1),
        "all": (((images, TEXTS), labels, weights), 2),
    }
    for name, (data, last) in cases.items():
        mapped = tf_dataset(data).map(model.preprocessor)
        (batch,) = list(mapped)
        batch = batch if isinstance(batch, tuple) else (batch,)
        assert len(batch) == last + 1, name
        for key, value in ready.items():
            found = ops.convert_to_numpy(batch[0][key])
            np.testing.assert_allclose(found, value, atol=1e-5, err_msg=name)
        if last == 2:
            np.testing.assert_array_equal(batch[2], weights)
        if name in ("labels", "all"):
            np.testing.assert_array_equal(batch[1], labels)


def test_raw_inputs_without_a_preprocessor_are_refused(model, images, expected):
    ready, _, _ = expected
    kinds = kinds_of(images, ready)
    del kinds["ready"]
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        for data in kinds.values():
            with pytest.raises(Exception, match="has no preprocessor"):
                model.predict(data, verbose=0)
            with pytest.raises(Exception, match="has no preprocessor"):
                model.fit(data, verbose=0)
        with pytest.raises(ValueError, match="has no preprocessor"):
            model.train_on_batch(kinds["dict"])
        with pytest.raises(ValueError, match="of dtype: .*uint8"):
            model({**ready, "images": images[:, :8, :8]})
        with pytest.raises(ValueError, match="Missing data.*padding_mask"):
            model({k: ready[k] for k in ("images", "token_ids")})
    finally:
        model.preprocessor = preprocessor


def test_nothing_of_the_inputs_is_left_out(model, images, expected):
    tokens = {
        name: ops.convert_to_numpy(value)
        for name, value in model.preprocessor.tokenize(TEXTS[::-1]).items()
    }
    twice = {"images": images, "texts": TEXTS, **tokens}
    for run in (model.fit, model.evaluate, model.predict, model.test_on_batch):
        with pytest.raises(ValueError, match="besides texts: .'padding_mask'"):
            run(twice)
    with pytest.raises(ValueError, match="Received: .*'weights'"):
        model.encode_text({**tokens, "weights": np.ones(6)})
    with pytest.raises(ValueError, match=r"Received: \['token_ids'\]"):
        model.encode_text({"token_ids": tokens["token_ids"]})
    for run in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="sample_weight=2.0"):
            run((images, TEXTS), sample_weight=2.0)


def test_grain_gets_numpy_arrays(model, images, expected):
    grain = pytest.importorskip("grain")
    ready, embeddings, _ = expected
    rows = [
        {"images": image, "texts": text}
        for image, text in zip(images, TEXTS, strict=True)
    ]
    source = grain.MapDataset.source(rows).map(model.preprocessor)
    for value in source[0].values():
        assert type(value) is np.ndarray
    image = grain.MapDataset.source(images).map(
        model.preprocessor.image_converter
    )[1]
    assert type(image) is np.ndarray
    np.testing.assert_allclose(image, ready["images"][1], atol=1e-5)
    raw = grain.MapDataset.source(rows).batch(4)
    for data in (source.batch(4), raw):
        found = model.predict(data, verbose=0)
        for name, value in embeddings.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
