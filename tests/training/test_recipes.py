"""Recipes: the figures of those that ship, and what is refused on loading."""

import dataclasses

import pytest

from align_keras.training import Recipe
from align_keras.training import load_recipe
from align_keras.training.recipes import recipe_names

# What all recipes of the paper and its replica share (section 5).
COMMON = {
    "weight_decay": 1e-5,
    "label_smoothing": 0.1,
    "image_size": 289,
    "resize_size": 346,
    "sequence_length": 64,
    "optimizer": "lamb",
    "loss": "contrastive",
    "clip_norm": None,
    "ema": None,
    "microbatch_size": None,
    "precision": "mixed_bfloat16",
    "vocabulary_size": 100_000,
    "seed": 0,
    "strip_accents": True,
    "language_exponent": None,
    # As the presets, and so the paper, have them.
    "text_pooling": None,
    "text_dropout": None,
    "drop_connect": None,
    # Random crops and mirror images (section 4.1).
    "mirror": True,
    "patience": None,
    "epochs": None,
}
FIGURES = {
    "align": {
        "steps": 1_200_000,
        "batch_size": 16384,
        "learning_rate": 0.001,
        "warmup_steps": 10000,
        "initial_temperature": 1.0,
        "batch_norm": None,
    },
    "align_multilingual": {
        "steps": 1_200_000,
        "batch_size": 16384,
        "learning_rate": 0.001,
        "warmup_steps": 10000,
        "initial_temperature": 1.0,
        "batch_norm": None,
        "vocabulary_size": 250_000,
        "strip_accents": False,
    },
    "coyo700m": {
        "steps": 300_000,
        "batch_size": 65536,
        "learning_rate": 0.002,
        "warmup_steps": 40000,
        "initial_temperature": 1.0,
        "batch_norm": "ghost",
    },
    "cc3m": {
        "steps": 100_000,
        "batch_size": 16384,
        "learning_rate": 0.005,
        "warmup_steps": 10000,
        "initial_temperature": 1.0,
        "batch_norm": "ghost",
    },
    "finetune_flickr30k": {
        "steps": 3000,
        "batch_size": 2048,
        "learning_rate": 0.00001,
        "warmup_steps": 0,
        "initial_temperature": None,
        "batch_norm": None,
    },
    "finetune_coco": {
        "steps": 6000,
        "batch_size": 2048,
        "learning_rate": 0.00001,
        "warmup_steps": 0,
        "initial_temperature": None,
        "batch_norm": None,
    },
}
SMALL = {"steps": 100, "batch_size": 8, "learning_rate": 0.01}


@pytest.fixture
def write_recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(recipe, error=ValueError, **overrides):
    with pytest.raises(error) as caught:
        load_recipe(recipe, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FIGURES)
def test_shipped_recipes_hold_the_published_figures(name):
    recipe = dataclasses.asdict(load_recipe(name))
    expected = {**COMMON, **FIGURES[name]}
    assert {field: recipe[field] for field in expected} == expected
    # Evaluation and a checkpoint come at least a few times in a run.
    assert 1 < recipe["steps"] / recipe["checkpoint_every"] <= 300


def test_every_shipped_recipe_loads():
    names = recipe_names()
    assert set(FIGURES) <= set(names)
    for name in names:
        load_recipe(name)


def test_a_file_gives_the_fields_it_names_and_defaults_else(write_recipe):
    path = write_recipe("steps: 500\nbatch_size: 32\nlearning_rate: 0.01\n")
    assert load_recipe(path) == Recipe(
        steps=500, batch_size=32, learning_rate=0.01
    )


def test_numbers_as_people_write_them(write_recipe):
    # YAML 1.1 reads 1e-3 as a string, and 1.2e+6 as a float.
    path = write_recipe(
        "steps: 1.2e+6\nbatch_size: 16_384\nlearning_rate: 1e-3\n"
        "warmup_steps: 10_000\nweight_decay: 1e-5\nlabel_smoothing: 0\n"
    )
    recipe = load_recipe(path)
    assert recipe.steps == 1_200_000 and type(recipe.steps) is int
    assert recipe.batch_size == 16384
    assert recipe.learning_rate == 0.001
    assert recipe.weight_decay == 0.00001
    assert type(recipe.label_smoothing) is float


def test_overrides_replace_fields_and_none_does_not():
    recipe = load_recipe("align", batch_size=256, steps="20_000", seed=None)
    assert (recipe.batch_size, recipe.steps, recipe.seed) == (256, 20000, 0)
    assert recipe.learning_rate == 0.001
    again = load_recipe(recipe, learning_rate="5e-4")
    assert again == dataclasses.replace(recipe, learning_rate=0.0005)
    assert load_recipe(recipe) == recipe


def test_the_size_before_the_crop_follows_unless_it_was_given(write_recipe):
    for given, expected in ((None, 230), (300, 300)):
        fields = {**SMALL, "image_size": 289, "resize_size": given}
        lines = (f"{k}: {v}" for k, v in fields.items() if v is not None)
        path = write_recipe("\n".join(lines))
        for recipe in (Recipe(**fields), path):
            found = load_recipe(recipe, image_size=192)
            assert found.resize_size == expected


def test_overrides_are_validated_together_with_the_recipe():
    message = refusal("align", steps=5000, warmup_steps=10_000)
    assert "warmup_steps=10000" in message and "below `steps`" in message
    assert "batch_siz" in refusal("align", batch_siz=3)
    message = refusal(Recipe(**SMALL), batch_siz=3)
    assert "`batch_siz`" in message and "`batch_size`" in message


def test_steps_or_epochs_but_not_both(write_recipe):
    path = write_recipe("epochs: 3\nbatch_size: 32\nlearning_rate: 0.01\n")
    recipe = load_recipe(path)
    assert (recipe.epochs, recipe.steps) == (3.0, None)
    # What is asked for takes the other's place.
    assert load_recipe(path, steps=70).epochs is None
    assert load_recipe("small", epochs="2.5").steps is None
    message = refusal(path, steps=70, epochs=4)
    assert "steps=70, epochs=4.0" in message and "but not both" in message
    both = write_recipe(
        "epochs: 3\nsteps: 9\nbatch_size: 32\nlearning_rate: 0.01\n"
    )
    assert "steps=9, epochs=3.0" in refusal(both)


@pytest.mark.parametrize(
    "fields, records, expected",
    [
        # Steps, warm-up and checkpoints, by hand.
        ({"epochs": 3}, 1000, (94, 0, 1000)),
        ({"epochs": 0.5, "warmup_steps": 0.1}, 6400, (100, 10, 1000)),
        ({"epochs": 2, "warmup_steps": 7}, 6400, (400, 7, 1000)),
        ({"epochs": 1e-9}, 10, (1, 0, 1000)),
        ({"steps": 500, "warmup_steps": 0.05}, None, (500, 25, 1000)),
        ({"steps": 500, "checkpoint_every": 0.1}, 7, (500, 0, 50)),
        ({"steps": 3, "checkpoint_every": 0.1}, 7, (3, 0, 3)),
        ({"steps": 150, "checkpoint_every": 0.1}, 7, (150, 0, 20)),
        ({"epochs": 3, "steps_per_execution": 8}, 1000, (96, 0, 1000)),
        (
            {
                "epochs": 3,
                "steps_per_execution": 8,
                "checkpoint_every": 0.2,
            },
            1000,
            (96, 0, 16),
        ),
    ],
)
def test_epochs_and_shares_become_steps(fields, records, expected):
    recipe = Recipe(batch_size=32, learning_rate=0.1, **fields)
    whole = recipe.in_steps(records)
    found = whole.steps, whole.warmup_steps, whole.checkpoint_every
    assert found == expected and {*map(type, found)} == {int}
    assert whole.epochs is None and whole.in_steps() == whole


def test_epochs_need_data_to_count():
    recipe = Recipe(batch_size=32, learning_rate=0.1, epochs=3)
    with pytest.raises(ValueError, match="epochs=3.0; give `steps`"):
        recipe.in_steps()


def test_a_warmup_that_is_too_long_is_cut(caplog):
    # The share of the recipe: 10,000 of 1,200,000.
    recipe = load_recipe("align", steps="5_000")
    assert (recipe.steps, recipe.warmup_steps) == (5000, 41)
    assert "10000 steps is too long for a run of 5000: it is cut to 41" in (
        caplog.text
    )
    caplog.clear()
    # One of two steps or more are left to fall in.
    for name in recipe_names():
        recipe = load_recipe(name, steps=2).in_steps()
        assert (recipe.steps, recipe.warmup_steps) == (2, 0)
    assert load_recipe("small", steps=200).in_steps().warmup_steps == 10
    caplog.clear()
    assert load_recipe("align", steps=20_000).warmup_steps == 10_000
    assert not caplog.text
    recipe = Recipe(batch_size=8, learning_rate=1, epochs=5, warmup_steps=99)
    assert recipe.in_steps(80).warmup_steps == 5
    assert "99 steps is too long for a run of 50" in caplog.text


def test_small_data_is_not_mirrored_unless_asked_for():
    assert load_recipe("small").mirror is False
    assert load_recipe("small", mirror=True).mirror is True
    assert Recipe(**SMALL).mirror is False


@pytest.mark.parametrize(
    "field, nearest",
    [
        ("learning_rat", "learning_rate"),
        ("warmup", "warmup_steps"),
        ("batchsize", "batch_size"),
        ("optimiser", "optimizer"),
    ],
)
def test_an_unknown_field_suggests_the_nearest(write_recipe, field, nearest):
    path = write_recipe(
        f"steps: 9\nbatch_size: 2\nlearning_rate: 0.1\n{field}: 1\n"
    )
    message = refusal(path)
    assert path in message and f"`{field}`" in message
    assert f"mean `{nearest}`" in message


@pytest.mark.parametrize("field", ["steps", "batch_size", "learning_rate"])
def test_a_missing_field_is_named(write_recipe, field):
    lines = [f"{k}: {v}\n" for k, v in SMALL.items() if k != field]
    path = write_recipe("".join(lines))
    message = refusal(path)
    assert path in message and f"lacks the field `{field}`" in message
    # An override may supply it.
    assert getattr(load_recipe(path, **{field: 7}), field) == 7


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0),
        ("steps", -5),
        ("steps", 2.5),
        ("steps", True),
        ("steps", None),
        ("steps", "many"),
        ("steps", [100]),
        ("steps", float("inf")),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup_steps", -1),
        ("warmup_steps", 100),
        ("warmup_steps", 2.5),
        ("epochs", 0),
        ("epochs", "few"),
        ("patience", 0),
        ("patience", 1.5),
        ("mirror", 1),
        ("checkpoint_every", 1.5),
        ("weight_decay", -1e-5),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("image_size", 0),
        ("resize_size", 288),
        ("resize_ratio", 0.9),
        ("sequence_length", 2),
        ("loss", "softmax"),
        ("clip_norm", 0),
        ("clip_norm", float("inf")),
        ("ema", 0),
        ("ema", 1),
        ("optimizer", "lion"),
        ("optimizer", 3),
        ("precision", "float16"),
        ("checkpoint_every", 0),
        ("seed", "x"),
        ("batch_norm", "global"),
        ("batch_norm", False),
        ("initial_temperature", 0),
        ("initial_temperature", -1.0),
        ("text_pooling", "mean"),
        ("text_dropout", 1.0),
        ("drop_connect", -0.1),
        ("vocabulary_size", 0),
        ("strip_accents", "no"),
        ("language_exponent", -0.1),
        ("language_exponent", 1.1),
    ],
)
def test_wrong_types_and_ranges_name_field_and_value(field, value):
    with pytest.raises(ValueError) as caught:
        Recipe(**{**SMALL, field: value})
    message = str(caught.value)
    assert message.startswith(f"Recipe field `{field}` must be")
    received = float(value) if isinstance(value, int) else value
    assert any(f"{field}={v!r}" in message for v in (value, received))


def test_what_a_file_gets_wrong_names_the_file(write_recipe):
    path = write_recipe("steps: 9\nbatch_size: few\nlearning_rate: 0.1\n")
    message = refusal(path)
    assert path in message
    assert "batch_size='few'" in message and "of type int" in message


@pytest.mark.parametrize(
    "field, words",
    [
        ("microbatch_size: 7", "must be a divisor of `batch_size`"),
        ("microbatch_size: 0", "must be positive"),
        ("steps_per_execution: 2", "must be a divisor of `steps`"),
        ("freeze: 7", "must be of type str | list | None"),
        ("freeze: []", 'must be "image", "text", or regular expressions'),
        ("freeze: [image, 7]", 'must be "image", "text", or regular'),
        ("freeze: '('", 'must be "image", "text", or regular expressions'),
        ("unfreeze_after: 3", "left out where nothing is frozen by `freeze`"),
        ("unfreeze_after: 9\nfreeze: text", "must be below `steps`"),
        (
            "unfreeze_after: 4\nfreeze: text\nlora_rank: 2",
            "left out with `lora_rank`",
        ),
        ("lora_rank: 0", "must be positive"),
        ("layer_decay: 1.5", "must be above 0 and at most 1"),
        ("layer_decay: 0", "must be above 0 and at most 1"),
        ("freeze_statistics: 1", "of type bool"),
        ("remat: 1", "of type bool"),
        ("skip_nonfinite: perhaps", "of type bool"),
    ],
)
def test_what_does_not_fit_a_step(field, words, write_recipe):
    path = write_recipe(
        f"steps: 9\nbatch_size: 64\nlearning_rate: 0.1\n{field}\n"
    )
    message = refusal(path)
    assert words in message and field.partition(":")[0] in message


def test_steps_at_once_meet_the_end_of_what_is_frozen(write_recipe):
    path = write_recipe(
        "steps: 8\nbatch_size: 4\nlearning_rate: 0.1\ncheckpoint_every: 4\n"
        "freeze: text\nunfreeze_after: 3\nsteps_per_execution: 2\n"
    )
    assert "must be a divisor of `unfreeze_after`" in refusal(path)
    recipe = load_recipe(path, steps_per_execution=1)
    assert (recipe.freeze, recipe.unfreeze_after) == ("text", 3)
    assert load_recipe(recipe, freeze=["image", "x$"]).freeze == ["image", "x$"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: [1, 2\nbatch_size: 3", "not valid YAML"),
        ("- steps\n- batch_size\n", "must be a YAML mapping"),
        ("", "must be a YAML mapping"),
        ("just words", "must be a YAML mapping"),
    ],
)
def test_a_file_that_is_no_mapping(write_recipe, text, words):
    path = write_recipe(text)
    message = refusal(path)
    assert path in message and words in message


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert "not valid YAML" in refusal(str(path))


def test_an_unknown_name_suggests_the_nearest():
    message = refusal("finetune_flicker30k", FileNotFoundError)
    assert "Did you mean `finetune_flickr30k`" in message
    assert "coyo700m" in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    text = "steps: 8  # é\nbatch_size: 4\nlearning_rate: 0.1\n"
    path.write_text(text, encoding)
    assert load_recipe(path).steps == 8
    path.write_bytes(b"steps: 8 # \xe9")
    with pytest.raises(ValueError, match=r"recipe\.yaml.* not UTF-8"):
        load_recipe(path)
