import json
import logging

import numpy as np
import pytest
from tiny_align import image_file
from tiny_align import tiny_align

from align_keras.cli import main
from align_keras.cli.export import describe_int8
from align_keras.embedding import as_embedder
from align_keras.evaluation import retrieval_metrics
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import captioned
from align_keras.serving import export_quantized_towers
from align_keras.serving import quantization

WORDS = ["bus", "dog", "house", "red", "blue", "near"]
SUFFIXES = {"onnx": "onnx", "openvino": "xml"}


@pytest.fixture(scope="module")
def model(photos):
    """A model whose maps are as wide as after training.

    Without statistics, fresh layers shrink them until nothing is left.
    """
    model = tiny_align()
    photos = photos + [image_file(seed) for seed in range(60, 90)]
    images = model.preprocessor.image_converter.load(photos)
    for _ in range(20):
        model.image_encoder(images, training=True)
    return model


@pytest.fixture(scope="module")
def preset(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("preset")
    model.save_to_preset(path)
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of images with captions, of which one does not decode."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["image,caption"]
    for number in range(60):
        (folder / f"{number}.jpg").write_bytes(image_file(number))
        words = " ".join(WORDS[number // n % 6] for n in (1, 6, 36))
        rows.append(f"{number}.jpg,{words}")
    (folder / "broken.jpg").write_bytes(image_file(1)[:-300])
    rows.append("broken.jpg,the broken one")
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


def run_directly(path, inputs):
    """Run a file with its runtime alone."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(
            path, providers=["CPUExecutionProvider"]
        )
        return session.run(None, inputs)[0]
    import openvino

    model = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return model(inputs)[0]


def stored_integers(path):
    """Return how many weights a file stores in 8 bits."""
    if path.suffix == ".onnx":
        import onnx

        return sum(
            np.prod(tensor.dims)
            for tensor in onnx.load(path).graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8
        )
    import openvino

    return sum(
        np.prod(list(node.get_output_shape(0)))
        for node in openvino.Core().read_model(path).get_ordered_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == openvino.Type.i8
    )


@pytest.mark.parametrize("form", SUFFIXES)
def test_int8(form, model, preset, pairs, tmp_path, capsys):
    """The numbers are those of the files, and the files are in 8 bits."""
    output = tmp_path / "int8"
    command = ["export", "--model", preset, "--json"]
    command += ["--output", str(output), "--format", form]
    command += ["--precision", "int8", "--calibrate", str(pairs)]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["pairs"], result["images_skipped"]) == (30, 1)
    sample = quantization.draw_sample(
        captioned(pairs), as_embedder(model), model.preprocessor.tokenize
    )
    exact = {
        "image_encoder": model.encode_image,
        "text_encoder": model.encode_text,
    }
    vectors = {}
    for name, encode in exact.items():
        path = output / f"{name}.{SUFFIXES[form]}"
        assert path.name in result["files"]
        inputs = {key: rows[30:] for key, rows in sample.inputs[name].items()}
        expected = np.asarray(encode(inputs.get("images", inputs)))
        found = run_directly(path, inputs)
        vectors[name] = found / np.linalg.norm(found, axis=-1, keepdims=True)
        cosines = np.sum(vectors[name] * expected, -1)
        tower = name.split("_")[0]
        reported = result[f"{tower}_cosine"]
        assert reported["mean"] == pytest.approx(cosines.mean(), abs=1e-5)
        assert reported["min"] == pytest.approx(cosines.min(), abs=1e-5)
        # Random networks are more sensitive than trained ones.
        assert cosines.mean() > {"image": 0.75, "text": 0.99}[tower]
        # Rounding to 8 bits leaves its mark.
        assert np.abs(vectors[name] - expected).max() > 1e-4
        # Of a tower's weights, all but normalisations and embeddings.
        weights = getattr(model, name).weights
        products = sum(
            np.prod(weight.shape)
            for weight in weights
            if weight.path.endswith("kernel")
        )
        assert stored_integers(path) >= 0.9 * products
    expected = retrieval_metrics(*vectors.values(), np.arange(30), ks=(1, 5))
    assert len(result["recall"]) == 4
    for name, recall in result["recall"].items():
        assert recall["int8"] == pytest.approx(expected[name]), name


def test_the_words_of_the_command():
    words = describe_int8(
        {
            "pairs": 500,
            "images_skipped": 2,
            "images_without_caption": 0,
            "image_cosine": {"mean": 0.99661, "min": 0.9},
            "text_cosine": {"mean": 1.0, "min": 0.99},
            "recall": {
                "image_to_text_recall@1": {"float32": 0.53, "int8": 0.521}
            },
        }
    )
    assert words.split("\n") == [
        "Compared with float32 on 500 other pairs:",
        "  left out, images that do not decode: 2",
        "  cosine of image vectors: 0.9966 (mean), 0.9000 (smallest)",
        "  cosine of text vectors: 1.0000 (mean), 0.9900 (smallest)",
        "  image to text recall@1: 53.0% in float32, 52.1% in int8",
    ]


def test_the_sample_is_drawn_from_all_pairs(model, monkeypatch):
    """Sorted data do not calibrate on the first of them alone."""
    monkeypatch.setattr(quantization, "CALIBRATION_PAIRS", 4)
    monkeypatch.setattr(quantization, "TEST_PAIRS", 4)
    image = np.zeros((40, 40, 3), "uint8")
    texts = []

    def tokenize(captions):
        texts.extend(captions)
        return {"token_ids": np.zeros((len(captions), 1), "int32")}

    data = DataSet(
        "sorted",
        lambda: (
            (str(n), image, [f"{n}", "other"] if n % 40 else [])
            for n in range(400)
        ),
    )
    sample = quantization.draw_sample(data, as_embedder(model), tokenize)
    assert (sample.skipped, sample.without_caption) == (0, 10)
    assert len(sample) == len(set(texts)) == 8
    assert quantization.split_sample(sample) == 4
    drawn = [int(text) for text in texts]
    assert drawn != sorted(drawn)
    assert min(drawn) < 200 < max(drawn)


def test_refusals(model, preset, pairs, tmp_path, capsys, caplog):
    def refused(*options):
        command = ["export", "--model", preset]
        command += ["--output", str(tmp_path / "out"), *options]
        assert main(command) != 0
        return capsys.readouterr().err

    data = ["--calibrate", str(pairs)]
    words = refused("--precision", "int8", *data)
    assert "choose --format onnx or openvino" in words
    assert "Received: --format saved_model" in words
    words = refused("--precision", "int8", "--format", "onnx")
    assert "name them with --calibrate" in words
    words = refused("--format", "onnx", *data)
    assert "--calibrate is for --precision int8" in words
    one = DataSet("one", lambda: iter([("a", image_file(0), ["a bus"])]))
    with pytest.raises(ValueError, match="at least two.*`one`, with 1"):
        export_quantized_towers(model, tmp_path / "out", "onnx", one)
    with pytest.raises(ValueError, match="`form` must be one of.*'litert'"):
        export_quantized_towers(model, tmp_path / "out", "litert", one)
    assert not (tmp_path / "out").exists()
    broken = DataSet(
        "broken",
        lambda: iter([("b.jpg", b"no image", ["a bus"])]),
    )
    with (
        caplog.at_level(logging.WARNING, "align_keras"),
        pytest.raises(ValueError, match="`broken`, with 0"),
    ):
        export_quantized_towers(model, tmp_path / "out", "onnx", broken)
    assert "Left out the image `b.jpg`" in caplog.text
