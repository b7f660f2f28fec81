"""`profiles`, `zoo`, `doctor`, `schema`: what there is and what this machine can run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step
from stars_deploy.cli.commands import add


@command
def profiles() -> None:
    """List the packaged hardware profiles.

    Example: stars-deploy profiles --json
    """
    result = stars_deploy.profiles()
    console.show("Hardware profiles", ("name", "what it is"), result["profiles"].items())
    console.emit(result)
    next_step("stars-deploy check BUNDLE --profile NAME")


@command
def zoo() -> None:
    """List the packaged models: recipe, teacher, data.

    Example: stars-deploy zoo
    """
    result = stars_deploy.zoo()
    keys = ("name", "teacher", "data", "T")
    rows = [
        (model["name"], model["teacher"], model["data"], model["T"]) for model in result["models"]
    ]
    console.show("Models", keys, rows)
    console.emit(result)
    next_step("stars-deploy distill NAME --dry-run --out run")


@command
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Build the Lava environment.")] = False,
) -> None:
    """Say what this machine can run, in words to paste into an issue: no private names or paths.

    Examples:
      stars-deploy doctor
      stars-deploy doctor --fix
    """
    with console.progress() as progress:
        result = stars_deploy.doctor(fix=fix, progress=progress)
    console.emit(result)
    next_step("stars-deploy demo")
    console.say("Copy and paste what follows into an issue; no path or name of yours is in it:\n")
    lines = [f"{name}: {value}" for name, value in _flat(result)]
    console.say("\n".join(["```text", *lines, "```"]))


@command
def schema(
    name: Annotated[
        str, typer.Argument(help="A command (teacher-train), a file (manifest.json), or error.")
    ],
) -> None:
    """Print the JSON Schema of what a command prints under --json, or of a file.

    Examples:
      stars-deploy schema validate
      stars-deploy schema manifest.json
    """
    result = stars_deploy.schema(name)
    if console.settings.json:
        console.emit(result)
    else:
        console.write_stdout(json.dumps(result, indent=2) + "\n")


def _flat(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            rows += _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            rows.append((prefix + key, ", ".join(map(str, item)) or "-"))
        else:
            rows.append((prefix + key, str(item)))
    return rows


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for function in (profiles, zoo, doctor, schema):
        add(app, function)
