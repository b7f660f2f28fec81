"""`profiles`, `zoo`, `doctor`: what there is and what this machine can run."""

from __future__ import annotations

from typing import Annotated

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step


@command
def profiles() -> None:
    """List the packaged hardware profiles."""
    result = stars_deploy.profiles()
    console.show("Hardware profiles", ("name", "what it is"), result["profiles"].items())
    console.emit(result)
    next_step("stars-deploy check BUNDLE --profile NAME")


@command
def zoo() -> None:
    """List the packaged models: recipe, teacher, data."""
    result = stars_deploy.zoo()
    keys = ("name", "teacher", "data", "T")
    rows = [[model[key] for key in keys] for model in result["models"]]
    console.show("Models", keys, rows)
    console.emit(result)
    next_step("stars-deploy distill NAME --dry-run --out run")


@command
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Build the Lava environment.")] = False,
) -> None:
    """Say what this machine can run; the output is meant to be pasted into an issue."""
    with console.progress() as progress:
        result = stars_deploy.doctor(fix=fix, progress=progress)
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
