"""The packaged recipes of the paper's data-free rows have its appendix's settings to the digit."""

import json
from pathlib import Path

import pytest

from stars_deploy.assets import asset
from stars_deploy.config.recipe import Recipe, load_recipe
from stars_deploy.distillation.schedule import estimate
from stars_deploy.errors import RecipeError

PAPER = json.loads((Path(__file__).parent / "data" / "paper_settings.json").read_text())
FAMILIES = {"VGG-16": "vgg16", "ResNet-34": "resnet34", "ResNet-19": "resnet19"}
METHODS = {"DeepInversion": "deepinversion", "CMI": "cmi", "NAYER": "nayer"}
DATA = {"cifar10": "cifar10+cifar100", "cifar100": "cifar10+cifar100"}
ROWS = [
    (method, data, teacher, f"{method}/{DATA.get(data, 'tiny_imagenet')}")
    for method in METHODS
    for data in ("cifar10", "cifar100", "tiny-imagenet")
    for teacher in FAMILIES
    if data != "tiny-imagenet" or (method != "DeepInversion" and teacher == "ResNet-34")
]
# What the settings are called in the paper, and where a recipe has them.
KEYS = {
    "T": "student.T",
    "seed": "run.seed",
    "epochs": "run.epochs",
    "warmup": "run.warmup",
    "kd_steps": "kd.steps",
    "g_steps": "synthesis.{method}.g_steps",
    "g_life": "synthesis.nayer.g_life",
    "g_loops": "synthesis.nayer.g_loops",
    "gwp_loops": "synthesis.nayer.gwp_loops",
    "batch_size": "kd.batch_size",
    "synthesis_batch_size": "synthesis.batch_size",
    "lr": "kd.lr",
    "lr_g": "synthesis.lr",
    "adv": "synthesis.adv",
    "bn": "synthesis.bn",
    "oh": "synthesis.oh",
    "cr": "synthesis.cmi.cr",
    "cr_T": "synthesis.cmi.cr_T",
    "kd_temperature": "kd.tau",
}


def packaged(method: str, data: str, teacher: str) -> Recipe:
    return load_recipe(f"paper-{METHODS[method]}-{data}-{FAMILIES[teacher]}")


@pytest.mark.parametrize(("method", "data", "teacher", "settings"), ROWS)
def test_settings_are_the_appendixs(method, data, teacher, settings):
    recipe = packaged(method, data, teacher).resolved()
    for name, value in PAPER["settings"][settings].items():
        found = recipe
        for part in KEYS[name].format(method=METHODS[method]).split("."):
            found = found[part]
        assert found == value, name
    stars = recipe["stars"]
    assert [stars["lambda_rca"], stars["lambda_tar"], stars["delta"]] == [
        PAPER["stars"][key] for key in ("lambda_rca", "lambda_tar", "delta")
    ]
    assert stars["quantiles"] == PAPER["stars"]["threshold_values"] and stars["enabled"]
    assert recipe["synthesis"]["method"] == METHODS[method]
    assert not recipe["warm_start"]["enabled"]  # the paper trains from random weights


def test_every_row_of_table_1_has_a_recipe():
    for method, teacher, student in PAPER["table1"]:
        for data in ("cifar10", "cifar100"):
            recipe = packaged(method.removesuffix(" + STARS"), data, teacher)
            wanted = student.removeprefix("S-").lower().replace("-", "")
            own = recipe.student.architecture
            assert wanted == (recipe.teacher.family if own == "twin" else own)
            assert len(recipe.data.classes) == (10 if data == "cifar10" else 100)


@pytest.mark.parametrize(
    ("name", "images", "updates"),
    [
        ("paper-deepinversion-cifar10-vgg16", 51_200, 80_000),
        ("paper-cmi-cifar100-resnet34", 51_200, 80_000),
        ("paper-nayer-cifar10-resnet19", 560_000, 300_000),
        ("paper-nayer-tiny-imagenet-resnet34", 320_000, 300_000),
    ],
)
def test_budgets_are_what_follows_from_the_settings(name, images, updates):
    plan = estimate(load_recipe(name))
    assert (plan["synthetic_images"], plan["student_updates"]) == (images, updates)


def test_a_recipe_extends_others_later_over_earlier(tmp_path):
    base = asset("models", "bases", "cifar10.toml").read_text()
    (tmp_path / "base.toml").write_text(base + '[teacher]\nfamily = "resnet20"\nweights = "t.st"\n')
    (tmp_path / "over.toml").write_text("[kd]\nlr = 0.5\n[data]\ncrop_padding = 2\n")
    (tmp_path / "heir").mkdir()
    heir = tmp_path / "heir" / "recipe.toml"
    heir.write_text('extends = ["../base.toml", "../over.toml"]\nname = "heir"\n[kd]\nsteps = 7\n')
    recipe = load_recipe(heir)
    assert (recipe.name, recipe.kd.lr, recipe.kd.steps) == ("heir", 0.5, 7)
    assert recipe.data.crop_padding == 2 and recipe.data.classes[0] == "airplane"
    assert recipe.teacher.weights == str(tmp_path / "t.st")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "a.toml"', "must be a list"),
        ('extends = ["recipe.toml"]', "extends itself"),
        ('extends = ["absent.toml"]', "absent.toml: no such file"),
    ],
)
def test_bad_extends_are_refused(tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "recipe.toml")
