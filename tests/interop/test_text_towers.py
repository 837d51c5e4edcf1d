"""BERTs of other libraries in our text encoder, against their own outputs."""

import copy
import json

import keras
import keras_hub
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="The comparison needs PyTorch")
transformers = pytest.importorskip(
    "transformers", reason="The comparison needs transformers"
)
safetensors = pytest.importorskip("safetensors.numpy")
tf = pytest.importorskip("tensorflow")

from huggingface_models import VOCABULARY
from huggingface_models import make_inputs
from huggingface_models import randomize

from align_keras import AlignDualEncoder
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras.cli import main
from align_keras.interop import from_keras_hub_bert
from align_keras.interop.model_garden import ModelGardenBert

ATOL = 1e-5
CONFIG = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
}


def make_bert(kind=transformers.BertModel, **config):
    config = transformers.BertConfig(**{**CONFIG, **config})
    return randomize(kind(config), seed=1)


def tokens():
    inputs = make_inputs(4)
    del inputs["images"]
    return inputs


def assert_equal_sequences(encoder, expected):
    inputs = tokens()
    result = encoder(inputs)
    sequence = keras.ops.convert_to_numpy(result["sequence_output"])
    # Places of padding differ in what nobody looks at.
    there = inputs["padding_mask"].astype(bool)
    assert np.std(expected[there], axis=0).min() > 0.1
    np.testing.assert_allclose(sequence[there], expected[there], atol=ATOL)
    pooled = keras.ops.convert_to_numpy(result["pooled_output"])
    np.testing.assert_allclose(pooled, expected[:, 0], atol=ATOL)


def huggingface_sequences(model):
    inputs = tokens()
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(inputs["token_ids"]).long(),
            attention_mask=torch.tensor(inputs["padding_mask"]).long(),
        )
    return outputs.last_hidden_state.numpy()


def test_huggingface(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path)
    encoder = BertTextEncoder.from_preset(str(tmp_path))
    assert_equal_sequences(encoder, huggingface_sequences(model))


def test_huggingface_with_heads_and_first_names(tmp_path, capsys):
    """As `bert-base-uncased` is: a prefix, heads, and gamma for weight."""
    model = make_bert(transformers.BertForPreTraining, hidden_act="gelu_new")
    source = tmp_path / "source"
    model.save_pretrained(source)
    path = source / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in safetensors.load_file(path).items()
    }
    assert any(name.startswith("cls.") for name in tensors)
    safetensors.save_file(tensors, path)
    (source / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    # Through a preset on disk, with the vocabulary beside the weights.
    assert main(["convert", str(source), str(tmp_path / "preset")]) == 0
    assert "BertTextEncoder" in capsys.readouterr().out
    encoder = BertTextEncoder.from_preset(str(tmp_path / "preset"))
    assert_equal_sequences(encoder, huggingface_sequences(model.bert))
    tokenizer = AlignTokenizer.from_preset(str(tmp_path / "preset"))
    assert tokenizer.get_vocabulary() == VOCABULARY
    tensors["bert.encoder.layer.7.output.dense.bias"] = np.zeros(3)
    safetensors.save_file(tensors, path)
    with pytest.raises(ValueError, match="unexpected tensors: bert.encoder.la"):
        BertTextEncoder.from_preset(str(source))


def test_keras_hub(tmp_path):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=48,
        max_sequence_length=70,
    )
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        scale = 0.7 if "embedding" in weight.path else 0.2
        shift = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(shift + rng.normal(0, scale, weight.shape))
    inputs = tokens()
    inputs["segment_ids"] = np.zeros_like(inputs["token_ids"])
    expected = np.asarray(backbone(inputs)["sequence_output"])
    assert_equal_sequences(from_keras_hub_bert(backbone), expected)
    codes = copy.deepcopy(backbone)
    codes.quantize("int8")
    with pytest.raises(ValueError, match="quantised: .* is of type I8"):
        from_keras_hub_bert(codes)
    backbone.save_to_preset(tmp_path)
    keras_hub.tokenizers.BertTokenizer(
        VOCABULARY, lowercase=True, strip_accents=True
    ).save_to_preset(tmp_path)
    encoder = BertTextEncoder.from_preset(str(tmp_path))
    assert_equal_sequences(encoder, expected)
    tokenizer = AlignTokenizer.from_preset(str(tmp_path))
    assert tokenizer("A Café red bus").tolist() == [
        VOCABULARY.index(word) for word in ("a", "cafe", "red", "bus")
    ]
    with pytest.raises(ValueError, match="BertTextEncoder.from_preset"):
        AlignDualEncoder.from_preset(str(tmp_path))


def write_original(model, directory, leave_out=()):
    """Write a checkpoint as BERT's own program does, from transformers' BERT.

    Its variables have the names and forms of `bert/modeling.py`; kernels are
    the transposed ones of PyTorch.
    """
    directory.mkdir(exist_ok=True)
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session() as session:
        for name, tensor in model.state_dict().items():
            value = tensor.numpy()
            *parts, last = name.split(".")
            if "embeddings" in parts and "LayerNorm" not in parts:
                last = None
            elif "LayerNorm" in parts:
                last = {"weight": "gamma", "bias": "beta"}[last]
            elif last == "weight":
                last, value = "kernel", value.T
            if "layer" in parts:
                index = parts.index("layer")
                parts[index : index + 2] = [f"layer_{parts[index + 1]}"]
            name = "/".join(["bert", *parts, *([last] if last else [])])
            if name not in leave_out:
                tf.compat.v1.get_variable(name, initializer=value)
        tf.compat.v1.get_variable("global_step", initializer=np.int64(7))
        tf.compat.v1.get_variable(
            "bert/embeddings/LayerNorm/beta/adam_m", initializer=np.zeros(32)
        )
        tf.compat.v1.get_variable("cls/predictions/output_bias", (3,))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(
            session, str(directory / "bert_model.ckpt"), write_state=False
        )
    config = {**CONFIG, "hidden_act": "gelu", "hidden_dropout_prob": 0.2}
    (directory / "bert_config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")


def test_original(tmp_path):
    model = make_bert(hidden_act="gelu_new")
    directory = tmp_path / "uncased_L-2_H-32_A-4"
    write_original(model, directory)
    encoder = BertTextEncoder.from_preset(str(directory))
    assert encoder.activation == "gelu_tanh" and encoder.dropout == 0.2
    assert_equal_sequences(encoder, huggingface_sequences(model))
    exact = BertTextEncoder.from_preset(str(directory), activation="gelu")
    exact_model = make_bert(hidden_act="gelu")
    assert_equal_sequences(exact, huggingface_sequences(exact_model))
    assert AlignTokenizer.from_preset(str(directory)).lowercase
    cased = directory.rename(tmp_path / "cased_L-2_H-32_A-4")
    assert not AlignTokenizer.from_preset(str(cased)).lowercase
    garden = ModelGardenBert(cased, {})
    assert not garden.tokenizer().lowercase
    assert garden.tokenizer(lowercase=True).lowercase


def test_original_with_a_variable_missing(tmp_path):
    name = "bert/encoder/layer_1/output/dense/kernel"
    write_original(make_bert(), tmp_path, leave_out=[name])
    with pytest.raises(ValueError, match=rf"missing tensors: {name} \(48, 32"):
        BertTextEncoder.from_preset(str(tmp_path))
    for path in tmp_path.glob("bert_model.ckpt*"):
        path.unlink()
    with pytest.raises(ValueError, match="must hold one TensorFlow checkpoint"):
        BertTextEncoder.from_preset(str(tmp_path))
