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
    # As the presets, and so the paper, have them.
    "text_pooling": None,
    "text_dropout": None,
    "drop_connect": None,
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


def test_overrides_are_validated_together_with_the_recipe():
    message = refusal("align", steps=5000)
    assert "warmup_steps=10000" in message and "below `steps`" in message
    assert "batch_siz" in refusal("align", batch_siz=3)
    message = refusal(Recipe(**SMALL), batch_siz=3)
    assert "`batch_siz`" in message and "`batch_size`" in message


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
        ("freeze: text", "must be image or null"),
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


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: [1, 2\nbatch_size: 3", "no valid YAML"),
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
    assert "no valid YAML" in refusal(str(path))


def test_an_unknown_name_suggests_the_nearest():
    message = refusal("finetune_flicker30k", FileNotFoundError)
    assert "Did you mean `finetune_flickr30k`" in message
    assert "coyo700m" in message
