"""`sweep`: how many time steps, how many weight bits?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step
from stars_deploy.cli.bundle import DataOption, Device, Limit, Profile, Source
from stars_deploy.cli.commands import add


@command
def sweep(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder of sweep.json and sweep.png.")],
    profile: Profile = "loihi2",
    over: Annotated[
        str | None, typer.Option(help="T, bits or both; default: what the engine has.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Numbers of steps; default: 1,2,4,6,8 and the graph's.")
    ] = None,
    bits: Annotated[
        str | None, typer.Option(help="Weight bits; default: the profile's and fewer (8,6,5,4).")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="float or integer; default: the profile's.")
    ] = None,
    data: DataOption = None,
    limit: Limit = None,
    device: Device = "auto",
) -> None:
    """Plot accuracy and spikes against time steps and weight bits, with 95 % intervals.

    Example: stars-deploy sweep bundle --over both --data evaluation --out sweep
    """
    from stars_deploy.workflow.sweep import FIGURE

    with console.progress() as progress:
        result = stars_deploy.sweep(
            source, out=out, profile=profile, over=over, steps=steps, bits=bits, engine=engine,
            data=data, limit=limit, device=device, progress=progress,
        )  # fmt: skip
    console.emit(result)
    title = f"{result['n']} {result['images']} images, profile {result['profile']}"
    columns = ("engine", "T", "weight bits", "accuracy", "95 % interval", "agreement",
               "spikes per image", "synaptic operations")  # fmt: skip
    console.show(title, columns, [_row(point) for point in result["points"]])
    reference = result["reference"]
    if reference["accuracy"] is not None:
        reached = f"{100 * reference['accuracy']:.2f} %"
        console.say(f"Float reference, T = {reference['T']}: {reached}")
    for note in result["notes"]:
        console.say(f"Note: {note}")
    next_step(f"look at {out / FIGURE}")


def _row(point: Mapping[str, Any]) -> tuple[Any, ...]:
    accuracy, interval, agreement = point["accuracy"], point["interval"], point["agreement"]
    spikes = point["spikes_per_image"]
    operations = point["synaptic_operations"]
    return (
        point["engine"],
        point["T"],
        point["weight_bits"],
        None if accuracy is None else f"{100 * accuracy:.2f} %",
        None if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %",
        None if agreement is None else f"{100 * agreement:.2f} %",
        None if spikes is None else f"{spikes:,.0f}",
        None if operations is None else f"{operations:,.0f}",
    )


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    add(app, sweep)
