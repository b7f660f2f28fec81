"""`profiles`, `zoo`, `doctor`: what there is and what this machine can run."""

from __future__ import annotations

from typing import Annotated

import typer

from stars_deploy import console
from stars_deploy.cli.base import command, next_step


@command
def profiles() -> None:
    """List the packaged hardware profiles."""
    from stars_deploy.assets import asset
    from stars_deploy.config.profile import load_profile

    found = {
        path.stem: load_profile(path.stem) for path in asset("hardware_profiles").glob("*.toml")
    }
    rows = [(name, found[name].identity.description) for name in sorted(found)]
    console.show("Hardware profiles", ("name", "what it is"), rows)
    console.emit({"profiles": dict(rows)})
    next_step("stars-deploy check BUNDLE --profile NAME")


@command
def zoo() -> None:
    """List the packaged models: recipe, teacher, data."""
    from stars_deploy.assets import asset
    from stars_deploy.config.recipe import load_recipe

    rows = []
    for path in sorted(asset("models").glob("*/recipe.toml")):
        recipe = load_recipe(path)
        rows.append((path.parent.name, recipe.teacher.family, recipe.data.name, recipe.student.T))
    console.show("Models", ("name", "teacher", "data", "T"), rows)
    keys = ("name", "teacher", "data", "T")
    console.emit({"models": [dict(zip(keys, row, strict=True)) for row in rows]})
    next_step("stars-deploy distill NAME --dry-run --out run")


@command
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Build the Lava environment.")] = False,
) -> None:
    """Say what this machine can run; the output is meant to be pasted into an issue."""
    from stars_deploy.workflow.doctor import doctor as examine

    with console.progress() as progress:
        result = examine(fix=fix, progress=progress)
    console.emit(result)
    rows = [(name, value) for name, value in _flat(result)]
    console.show("stars-deploy doctor", ("what", "found"), rows)
    next_step("stars-deploy demo")


def _flat(value: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            rows.append((prefix + key, ", ".join(map(str, item)) or "-"))
        else:
            rows.append((prefix + key, str(item)))
    return rows


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for function in (profiles, zoo, doctor):
        app.command()(function)
