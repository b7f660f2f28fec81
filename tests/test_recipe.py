"""Recipes: what is shipped is valid, and every mistake is named with its remedy."""

import pytest
import tomli_w

from stars_deploy.assets import asset
from stars_deploy.config.recipe import find_recipe, load_recipe, parse_recipe
from stars_deploy.errors import RecipeError

DOCUMENT = {
    "name": "x",
    "data": {"name": "f", "shape": [1, 8, 8], "classes": ["a", "b"], "mean": [0.1], "std": [0.2]},
}


def changed(path, value):
    document = {
        key: dict(item) if isinstance(item, dict) else item for key, item in DOCUMENT.items()
    }
    *sections, key = path.split(".")
    node = document
    for section in sections:
        node = node.setdefault(section, {})
    node[key] = value
    return document


@pytest.mark.parametrize("path", sorted(asset("models").glob("*/recipe.toml")), ids=str)
def test_every_packaged_recipe_is_valid(path):
    recipe = load_recipe(path)
    assert find_recipe(recipe.name) == path
    # the resolved form says the same as the recipe itself
    assert parse_recipe(recipe.resolved(), "resolved") == recipe


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("kd.stepz", 3, ["kd.stepz", "steps"]),
        ("synthesis.nayer.g_step", 3, ["synthesis.nayer.g_step", "g_steps"]),
        ("neurone", {}, ["neurone", "neuron"]),
        ("kd.lr", -1, ["kd.lr", "-1", "greater than 0"]),
        ("kd.lr", float("nan"), ["kd.lr", "finite"]),
        ("student.T", 0, ["student.T", "0"]),
        ("data.mean", [0.1, 0.2], ["2", "1 channels"]),
        ("run", {"epochs": 3, "warmup": 3}, ["warmup", "3"]),
        ("synthesis.method", "nayr", ["synthesis.method", "nayr", "nayer"]),
    ],
)
def test_mistakes_are_named(path, value, words):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(path, value), "mine.toml")
    for word in ["mine.toml", *words]:
        assert word in str(caught.value)


def test_missing_sections_are_named():
    with pytest.raises(RecipeError, match="key 'data' is missing"):
        parse_recipe({"name": "x"}, "mine.toml")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="fashion-mnist"):
        load_recipe("fashion-mnits")


def test_malformed_toml_is_an_error(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[data\n")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(path)


def test_overrides_use_toml_values():
    recipe = load_recipe(
        "fashion-mnist", ["kd.lr=1e-3", "neuron.backend=norse", "stars.quantiles=[0.5, 0.9]"]
    )
    assert recipe.kd.lr == 1e-3
    assert recipe.neuron.backend == "norse"
    assert recipe.stars.quantiles == (0.5, 0.9)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["kd.lr=-1"], "--set kd.lr=-1: key 'kd.lr' has value -1"),
        (["kd.lr=0.1", "kd.lr=-1"], "--set kd.lr=-1: key 'kd.lr'"),
        (["kd={lr = -1}"], "--set kd={lr = -1}: key 'kd.lr'"),
        (["kd.stepz=3"], "--set kd.stepz=3: unknown key 'kd.stepz'; did you mean 'steps'?"),
        (['stars.layers=["a", 3]'], "--set stars.layers="),
    ],
)
def test_a_wrong_value_of_the_command_line_is_not_blamed_on_the_file(overrides, start):
    with pytest.raises(RecipeError) as caught:
        load_recipe("fashion-mnist", overrides)
    assert str(caught.value).startswith(start)
    assert "recipe.toml" not in str(caught.value)


def test_values_of_the_file_and_the_command_line_that_disagree_name_both(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(changed("run", {"epochs": 9, "warmup": 5})))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["run.epochs=4"])
    assert str(caught.value).startswith(f"{path} with --set run.epochs=4: key 'run': warmup is 5")


def test_mistakes_of_the_file_are_blamed_on_it_whatever_else_is_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(changed("kd.lr", -1)))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["kd.steps=5", "student.T=0"])
    assert f"{path}: key 'kd.lr' has value -1" in str(caught.value)
    assert "--set student.T=0: key 'student.T' has value 0" in str(caught.value)
    assert "kd.steps" not in str(caught.value)


def test_an_option_of_its_own_is_named_as_it_was_given():
    with pytest.raises(RecipeError) as caught:
        load_recipe("fashion-mnist", ["run.device=gpu"], {"run.device": "--device gpu"})
    assert str(caught.value).startswith("--device gpu: key 'run.device' has value 'gpu'")


@pytest.mark.parametrize("override", ["kd.lr", "=3", "kd..lr=3", "name.x=3"])
def test_malformed_overrides_are_errors(override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe("fashion-mnist", [override])
