"""What a run reads: lists of files, odd vocabularies, trained presets."""

import pytest
import tensorflow as tf
from colors import tiny_model as tiny_colors
from colors import write_images

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data.records import encode_record
from align_keras.training import Recipe
from align_keras.training import inputs
from align_keras.training import load_recipe
from align_keras.training import make_strategy
from align_keras.training import train
from align_keras.training.assembly import build_model
from align_keras.training.callbacks import SaveBest
from align_keras.training.inputs import check_resized
from align_keras.training.inputs import find_records
from align_keras.training.inputs import find_tokenizer
from align_keras.training.safety import Preemption
from align_keras.training.workers import Workers


def recipe(**fields):
    return Recipe(
        **{"steps": 4, "batch_size": 4, "learning_rate": 0.1, **fields}
    )


@pytest.fixture
def preset(tiny_model, tmp_path):
    """A trained preset with preprocessing other than the default."""
    model = tiny_model(initial_temperature=0.3)
    model.preprocessor = AlignPreprocessor(
        AlignTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]),
        AlignImageConverter(32, antialias=True, scale=1 / 255, offset=0.0),
        sequence_length=8,
    )
    model.save_to_preset(tmp_path / "preset")
    return str(tmp_path / "preset")


def test_many_files_may_be_listed(tmp_path):
    missing = [str(tmp_path / ("long" * 20) / f"{i}") for i in range(100)]
    with pytest.raises(FileNotFoundError, match="long"):
        find_records(missing, tmp_path / "packed")


def test_resized_images_follow_the_size_of_the_crop():
    assert recipe().resize_size == 346
    assert recipe(image_size=64).resize_size == 77
    assert load_recipe("cc3m", image_size=128).resize_size == 153
    assert load_recipe(recipe(), image_size=64).resize_size == 77
    assert recipe(image_size=64, resize_size=64).resize_size == 64
    assert recipe(image_size=64, resize_ratio=1.1).resize_size == 70
    assert load_recipe("small", image_size=96).resize_size == 106


def test_unusual_line_ends_in_captions_survive_a_resume(tmp_path):
    texts = ["bus\u2028by\u2029the\x85sea"] * 30
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as file:
        file.write(encode_record("a", b"image", texts, 1, 1))
    records = open_records(tmp_path)
    first, again = (
        find_tokenizer(len, None, records, tmp_path, step, recipe())
        for step in (0, 3)
    )
    assert first.get_vocabulary() == again.get_vocabulary()
    assert "bus" in first.get_vocabulary()
    copy = AlignTokenizer(str(tmp_path / "vocabulary.txt"))
    assert copy.get_vocabulary() == first.get_vocabulary()


def test_resized_records_fit_the_run_or_are_refused(tmp_path):
    folder = write_images(tmp_path / "photos")
    pack(folder, tmp_path / "full", folder / "captions.csv")
    pack(folder, tmp_path / "small", folder / "captions.csv", resize=36)
    for data in ("full", "small"):
        check_resized(tmp_path / data, AlignImageConverter(32, 36))
    check_resized(tmp_path / "full", AlignImageConverter(32, antialias=True))
    with pytest.raises(ValueError, match="small.*36 pixels.*resizes to 40"):
        check_resized(tmp_path / "small", AlignImageConverter(32, 40))
    averaging = AlignImageConverter(32, 36, antialias=True)
    with pytest.raises(ValueError, match="antialias=True"):
        check_resized([tmp_path / "full", tmp_path / "small"], averaging)
    with pytest.raises(ValueError, match="`resize_size=36` in the recipe"):
        train(
            tiny_colors,
            recipe(image_size=32, resize_size=40, sequence_length=6),
            tmp_path / "small",
            tmp_path / "run",
            verbose=False,
        )


def test_preprocessing_of_a_preset_is_kept(preset):
    model = build_model(preset, recipe(image_size=24), None)
    converter = model.preprocessor.image_converter
    assert converter.antialias is True
    assert (converter.scale, converter.offset) == (1 / 255, 0.0)
    assert converter.image_size == (24, 24)


def test_a_vocabulary_is_learned_from_every_language(
    tmp_path, monkeypatch, caplog
):
    """However many captions of the first one there are."""
    monkeypatch.setattr(inputs, "VOCABULARY_SAMPLE", 8)
    for language, caption, count in (("de", "ein Bus", 20), ("hi", "की", 4)):
        folder = tmp_path / "packed" / language
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "all.tfrecord")) as writer:
            for n in range(count):
                writer.write(encode_record(str(n), b"image", [caption], 1, 1))
    pattern = str(tmp_path / "packed" / "*" / "*.tfrecord")
    records, _ = find_records(pattern, tmp_path / "unused")
    asked = recipe(language_exponent=0.5, strip_accents=False)
    tokenizer = find_tokenizer(
        lambda size: None, None, records, tmp_path, 0, asked
    )
    assert tokenizer.strip_accents is False
    unknown = tokenizer.token_to_id("[UNK]")
    assert unknown not in [*tokenizer("ein Bus"), *tokenizer("की")]
    # The run resumes with the same tokenizer.
    again = find_tokenizer(lambda size: None, None, records, tmp_path, 1, asked)
    assert again.strip_accents is False
    assert again.get_vocabulary() == tokenizer.get_vocabulary()
    with caplog.at_level("INFO", "align_keras"):
        inputs.tell_languages(records, 0.5)
    told = [record.getMessage() for record in caplog.records]
    assert told[1].startswith("30.9% of the pairs come from the 16.7%")
    assert told[1].endswith("packed/hi.")


def test_initial_temperature_replaces_that_of_the_weights(preset):
    model = build_model(preset, recipe(initial_temperature=0.5), None)
    assert model.temperature == pytest.approx(0.5)
    model = build_model(preset, recipe(), None)
    assert model.temperature == pytest.approx(0.3)


FRESH = {"text_pooling": "average", "text_dropout": 0.3, "drop_connect": 0.4}


def test_fresh_towers_are_made_as_the_recipe_says():
    tokenizer = AlignTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    model = build_model("align_b0_bert_tiny", recipe(**FRESH), tokenizer)
    assert model.text_pooling == "average"
    assert model.text_encoder.dropout == 0.3
    assert model.text_encoder.embeddings_dropout.rate == 0.3
    assert model.image_encoder.dropout == 0.4
    assert model.image_encoder.blocks[-1].dropout == pytest.approx(
        0.4 * 15 / 16
    )
    assert model.text_encoder.vocabulary_size == 5
    plain = build_model("align_b0_bert_tiny", recipe(), tokenizer)
    assert plain.text_pooling == "auto"
    assert plain.text_encoder.dropout == 0.1
    assert plain.image_encoder.dropout == 0.2


def test_trained_towers_keep_pooling_and_dropout(preset, caplog):
    with caplog.at_level("INFO", "align_keras"):
        model = build_model(preset, recipe(**FRESH), None)
    assert model.text_pooling == "auto"
    assert model.text_encoder.dropout == 0.0
    (record,) = caplog.records
    assert "text_pooling, text_dropout, drop_connect" in record.getMessage()


def test_a_model_of_ones_own_is_not_changed():
    for field, value in FRESH.items():
        with pytest.raises(ValueError, match=f"`{field}` changes a preset"):
            build_model(len, recipe(**{field: value}), None)


def test_several_replicas_synchronise_statistics():
    tokenizer = AlignTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    for replicas, fields, expected in (
        (1, {}, "local"),
        (2, {}, "synchronized"),
        (2, {"batch_norm": "ghost"}, "ghost"),
    ):
        model = build_model(
            "align_b0_bert_tiny", recipe(**fields), tokenizer, replicas
        )
        assert model.image_encoder.batch_norm == expected


def test_preset_of_a_tower_is_refused(tmp_path):
    with pytest.raises(ValueError, match="class `EfficientNetBackbone`"):
        train("efficientnet_b0", recipe(), "nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match="class `BertTextEncoder`"):
        AlignDualEncoder.from_preset("bert_mini", text_encoder={"dropout": 0})


def test_ghost_statistics_need_whole_runs(tmp_path):
    with pytest.raises(ValueError, match="batch_size=40, 1 replicas"):
        train(
            "align_b0_bert_tiny",
            recipe(batch_size=40, batch_norm="ghost"),
            "nowhere",
            tmp_path / "run",
            strategy="one-device",
        )


def test_a_run_without_scores_can_go_on_with_them(tmp_path):
    class Recorder:
        step = 7
        recipe = recipe()
        said = []
        workdir = tmp_path

        def state(self):
            best = {"step": 5, "score": None}
            return {"step": 7, "best": best, "pending": True}

        def update(self, **state):
            self.said.append(state)

        def write(self, metrics):
            pass

        def begin_saving(self, directory):
            return lambda: None

        def after(self, job):
            job()

    recorder = Recorder()
    callback = SaveBest(
        recorder,
        tmp_path,
        recorder,
        Preemption(),
        Workers(make_strategy("one-device")),
        lambda model: {"mean_recall": 0.25},
    )
    callback.set_model(recorder)
    callback.on_train_begin()
    (said,) = recorder.said
    assert said["best"]["score"] == 0.25 and said["pending"] is False
