"""docs/method.md names only what exists: commands, recipes, keys, defaults, modules, functions."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
import typer
from pydantic import BaseModel

from stars_deploy.assets import asset
from stars_deploy.cli.app import app
from stars_deploy.config.recipe import METHOD_DEFAULTS, Recipe, Stars, load_recipe
from stars_deploy.networks.families import build_student, build_teacher
from stars_deploy.workflow.grid import SHORT, parse_seeds, parse_vary

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^stars-deploy compare .*$", TEXT, re.MULTILINE)
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
PLACES = sorted(set(re.findall(r"(stars_deploy/[\w/]+\.py)(?::(\w+))?", TEXT)))
SECTIONS = "|".join(Recipe.model_fields)
KEYS = sorted({word.split(" ")[0] for word in CODE if re.match(rf"({SECTIONS})\.\w", word)})


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header starts with `header`."""
    lines = TEXT.split(f"| {header} |", 1)[1].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def options(command: str) -> dict[str, object]:
    """What the command line itself makes of a command, without running it."""
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    return dict(group.commands[name].make_context(name, arguments).params)


def resolved_cells(command: str) -> list[Recipe]:
    given = options(command)
    assert parse_seeds(given["seeds"]) and given["weights"] and given["out"]
    overrides = given["overrides"] or []
    cells = parse_vary(given["vary"])
    return [load_recipe(given["recipe"], [*overrides, *cell.overrides]) for cell in cells]


def test_every_ablation_of_the_paper_has_a_command():
    found = {options(command)["out"].name for command in COMMANDS}
    assert found == {"table1", "table3", "table4", "table5", "table6"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_its_cells_are_different_recipes(command):
    recipes = resolved_cells(command)
    documents = [recipe.resolved() for recipe in recipes]
    assert all(documents.count(document) == 1 for document in documents)
    assert {recipe.name for recipe in recipes} == {options(command)["recipe"]}
    assert options(command)["data"] == recipes[0].data.name
    with torch.device("meta"):
        for recipe in recipes:
            build_student(recipe)


def test_the_ablations_have_the_papers_values():
    cells = {options(command)["out"].name: resolved_cells(command) for command in COMMANDS}
    weights = [(r.stars.lambda_rca, r.stars.lambda_tar) for r in cells["table3"]]
    assert weights == [(0, 0), (0, 1), (1, 0), (1, 1)]
    highest = (0.6, 0.7, 0.8, 0.9, 0.95)
    assert {r.stars.quantiles for r in cells["table4"]} == {highest[-n:] for n in (2, 3, 4, 5)}
    assert [r.student.T for r in cells["table5"]] == [2, 4, 8]
    assert [r.neuron.model for r in cells["table6"]] == ["if", "lif", "plif"]
    families = {name: recipes[0].teacher.family for name, recipes in cells.items()}
    assert families["table3"] == families["table4"] == "resnet19"
    assert families["table5"] == families["table6"] == "vgg16"


def test_all_of_the_papers_recipes_are_named_and_no_other():
    packaged = {path.parent.name for path in asset("models").glob("paper-*/recipe.toml")}
    assert {word for word in CODE if word.startswith("paper-")} == packaged


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_modules_and_functions_exist(path, name):
    assert (ROOT / path).is_file()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert hasattr(module, name)
    assert getattr(getattr(module, name), "__module__", module.__name__) == module.__name__


@pytest.mark.parametrize("key", KEYS)
def test_recipe_keys_exist(key):
    node = Recipe
    for part in SHORT.get(key, key).split("."):
        assert isinstance(node, type) and issubclass(node, BaseModel), key
        assert part in node.model_fields, key
        node = node.model_fields[part].annotation


def test_the_table_of_stars_has_every_key_default_and_word():
    table = rows("key | default | alternatives")
    assert [row[0] for row in table] == [f"`stars.{name}`" for name in Stars.model_fields]
    for key, default, alternatives, _ in table:
        field = Stars.model_fields[key.strip("`").removeprefix("stars.")]
        if default == "unset":
            assert field.default is None
            continue
        shown = tomllib.loads(f"v = {default.strip('`')}")["v"]
        assert (tuple(shown) if isinstance(shown, list) else shown) == field.default
        words = set(re.findall(r'"([^"]+)"', f"{default} {alternatives}"))
        parts = [field.annotation, *get_args(field.annotation)]
        literals = [get_args(part) for part in parts if get_origin(part) is Literal]
        assert words == {word for choices in literals for word in choices}


def test_the_weights_are_the_defaults():
    methods = list(METHOD_DEFAULTS)
    assert f"| {' | '.join(methods)} |" in TEXT
    for _, key, *numbers, _ in rows("term | key of its weight"):
        for method, number in zip(methods, numbers, strict=True):
            node = load_recipe(
                ROOT / "models" / "bases" / "cifar10.toml", [f"synthesis.method={method}"]
            )
            for part in key.strip("`").split("."):
                node = getattr(node, part)
            assert number == "-" or float(number) == node, (key, method)


@pytest.mark.parametrize("row", rows("family | arguments"), ids=lambda row: f"{row[0]} {row[1]}")
def test_parameters_are_counted_right(row):
    family, arguments, *counts = (cell.strip("`") for cell in row)
    for data, count in zip(("cifar10", "cifar100", "tiny-imagenet"), counts, strict=True):
        given = [f"teacher.family={family}", *([f"teacher.args.{arguments}"] if arguments else [])]
        recipe = load_recipe(ROOT / "models" / "bases" / f"{data}.toml", given)
        with torch.device("meta"):
            network = build_teacher(recipe)
        total = sum(parameter.numel() for parameter in network.parameters())
        assert count in ("", f"{total:,}")


def test_the_document_finds_something_to_check():
    assert len(COMMANDS) == 5 and len(PLACES) > 25 and len(KEYS) > 40
