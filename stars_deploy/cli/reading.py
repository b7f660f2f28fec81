"""Options of check, export and simulate for a .nir file that another tool wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from stars_deploy.cli.base import quoted

_THEIRS = "Third-party .nir:"

Steps = Annotated[int | None, typer.Option(min=1, help=f"{_THEIRS} time steps per image.")]
Dt = Annotated[
    float | None,
    typer.Option("--dt", help=f"{_THEIRS} seconds per step, in the unit of the file's tau."),
]
Gain = Annotated[
    str | None,
    typer.Option(help=f"{_THEIRS} r is raw (in NIR's equation) or discrete (factor of a step)."),
]
Mean = Annotated[
    str | None,
    typer.Option(help=f"{_THEIRS} mean of pixel / 255, one number or one per channel: 0.5,0.4."),
]
Std = Annotated[
    str | None, typer.Option(help=f"{_THEIRS} standard deviation of pixel / 255, as --mean.")
]
Classes = Annotated[
    str | None, typer.Option(help=f"{_THEIRS} names of the logits, a,b,c or a JSON list.")
]
ImageShape = Annotated[
    str | None, typer.Option(help=f"{_THEIRS} C,H,W of the image behind a vector input.")
]


def reading_options(
    steps: int | None,
    dt: float | None,
    gain: str | None,
    mean: str | None,
    std: str | None,
    classes: str | None,
    image_shape: str | None,
) -> str:
    """Return these options as the next command takes them, each after a space."""
    options = {
        "--steps": steps,
        "--dt": dt,
        "--gain": gain,
        "--mean": mean,
        "--std": std,
        "--classes": classes,
        "--image-shape": image_shape,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return "".join(f" {name} {quoted(value)}" for name, value in given.items())
