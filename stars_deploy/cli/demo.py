"""`stars-deploy demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step
from stars_deploy.cli.commands import add
from stars_deploy.cli.tables import show_validation
from stars_deploy.errors import ParityError


@command
def demo(
    out: Annotated[Path, typer.Option(help="Where DIR/run and DIR/bundle go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the distillation.")] = 0,
) -> None:
    """The whole journey on the packaged Fashion-MNIST teacher: a CPU, minutes, no network.

    Distils without data, exports NIR, ONNX and Loihi, simulates, and validates spike for spike;
    Lava itself judges if its environment is there (`stars-deploy doctor --fix` builds it).

    Example: stars-deploy demo --out demo
    """
    with console.progress() as progress:
        result = stars_deploy.demo(out=out, seed=seed, progress=progress)
    for validation in result["validations"]:
        show_validation(validation)
    _show_accuracies(result)
    console.emit(result)
    console.show("Seconds", ("stage", "s"), list(result["seconds"].items()))
    console.say(f"Report: {result['report']}")
    if result["verdict"] != "pass":
        failed = [v for v in result["validations"] if v["verdict"] != "pass"]
        console.complain(f"Error: {failed[0]['engine']['name']}: {failed[0]['reason']}")
        raise typer.Exit(ParityError.exit_code)
    next_step(
        f"stars-deploy validate {out / 'bundle'} --engine lava   |   "
        f"python {out / 'bundle' / 'run_onnx.py'} {out / 'bundle'}   |   "
        "stars-deploy distill --help (your own teacher)"
    )


def _show_accuracies(result: Mapping[str, Any]) -> None:
    rows = [(name, f"{value:.4f}") for name, value in result["accuracy"].items()]
    console.show(f"Accuracy on {result['n']} images", ("network", "top-1"), rows)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    add(app, demo)
