"""Options of check, export and simulate for a .nir file that another tool wrote."""

from __future__ import annotations

from typing import Annotated

import typer

_PANEL = "A .nir file of another tool (a value in the file wins)"


def _option(name: str, help_: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=help_, rich_help_panel=_PANEL)
    return option


Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Time steps per image.", rich_help_panel=_PANEL),
]
Dt = Annotated[float | None, _option("--dt", "Seconds per step, in the unit of the file's tau.")]
Gain = Annotated[
    str | None,
    _option("--gain", "What r is: raw, in NIR's equation; discrete, the factor of one step."),
]
Mean = Annotated[
    str | None, _option("--mean", "Mean of pixel / 255, one or one per channel: 0.5,0.4,0.4.")
]
Std = Annotated[str | None, _option("--std", "Standard deviation of pixel / 255, as --mean.")]
Classes = Annotated[str | None, _option("--classes", "Names of the logits: a,b,c or a JSON list.")]
ImageShape = Annotated[
    str | None, _option("--image-shape", "C,H,W of the image behind a vector input.")
]
