"""`compare`, `operating-point`, `tensorboard`: questions a researcher asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step, quoted
from stars_deploy.cli.commands import add
from stars_deploy.cli.train import DataOption, Device, SetOption


@command
def compare(
    recipe: Annotated[str, typer.Argument(help="Recipe file or packaged model.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; continued if it is one.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Values to compare: stars=on,off or kd.lr=0.02,0.05."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds: 0,1,2 or 0-4.")] = "0,1,2",
    data: DataOption = "evaluation",
    weights: Annotated[
        Path | None, typer.Option(help="The teacher's weights (safetensors).")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Run a recipe with values varied, over seeds: means, spreads, paired differences.

    Example: stars-deploy compare fashion-mnist --vary stars=on,off --seeds 0,1,2 --out stars
    """
    from stars_deploy.workflow.compare import HEADER, TABLE, table_rows

    with console.progress() as progress:
        result = stars_deploy.compare(
            recipe, out=out, vary=vary or (), seeds=seeds, data=data, weights=weights,
            overrides=overrides or (), progress=progress,
        )  # fmt: skip
    console.emit(result)
    chosen = ", ".join(map(str, result["seeds"]))
    title = f"{result['n']} images of {result['data']}, seeds {chosen}"
    console.show(title, HEADER, table_rows(result))
    next_step(f"read {out / TABLE}; more seeds: the same command with --seeds 0-9")


@command
def operating_point(
    run: Annotated[Path, typer.Argument(help="Folder of a distillation run.")],
    data: Annotated[
        str | None, typer.Option(help="Real images to compare with: a name, a folder, an npz.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images of each kind.")] = 2000,
    device: Device = "auto",
) -> None:
    """Show tail masses and firing rates per layer, on synthetic and on real images.

    Example: stars-deploy operating-point run --data evaluation
    """
    from stars_deploy.workflow.operating_point import FIGURE

    with console.progress() as progress:
        result: Mapping[str, Any] = stars_deploy.operating_point(
            run, data=data, limit=limit, device=device, progress=progress
        )
    console.emit(result)
    for source, count in result["images"].items():
        rows = [
            (
                layer["name"],
                *(f"{mass:.4f}" for mass in layer[source]["tail_mass"]),
                f"{layer[source]['predicted_rate']:.4f}",
                f"{layer[source]['rate']:.4f}",
                layer.get("firing"),
            )
            for layer in result["layers"]
        ]
        levels = [f"> {level:.4g}" for level in result["thresholds"]]
        columns = ("layer", *levels, "predicted rate", "rate", "synthetic vs real")
        console.show(f"{count} {source} images: share of currents", columns, rows)
    next_step(f"look at {run / FIGURE}")


@command
def tensorboard(
    run: Annotated[
        Path, typer.Argument(help="A folder that distill, teacher train or finetune wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the event files.")],
) -> None:
    """Write the metrics of a run as event files for TensorBoard, also while it still goes on.

    Example: stars-deploy tensorboard run --out events
    """
    result = stars_deploy.tensorboard(run, out=out)
    console.emit(result)
    console.say(f"Events: {out} ({result['scalars']} values of {len(result['tags'])} curves)")
    next_step(f"tensorboard --logdir {quoted(out)}")


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    add(app, compare)
    add(app, operating_point)
    add(app, tensorboard)
