"""`export`, `check`, `simulate`, `validate`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.cli.base import command, next_step, quoted
from stars_deploy.cli.commands import add
from stars_deploy.cli.reading import (
    Classes,
    Dt,
    Gain,
    ImageShape,
    Mean,
    Std,
    Steps,
    reading_options,
)
from stars_deploy.cli.tables import show_findings, show_placement, show_simulation, show_validation
from stars_deploy.errors import DoesNotFit, ParityError

Source = Annotated[Path, typer.Argument(help="A run, a bundle or a .nir file.")]
Profile = Annotated[str, typer.Option(help="Hardware profile: a name or a TOML file.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first images.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Data set: a name, a folder of idx files, or an npz.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BalanceOption = Annotated[
    str, typer.Option("--balance", help="How skips wait on a chip: relay populations or delay.")
]


@command
def export(
    source: Source,
    target: Annotated[list[str], typer.Option(help="nir, onnx or loihi; repeat it.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    profile: Profile = "loihi2",
    golden: Annotated[int, typer.Option(min=1, help="Images recorded in golden.npz.")] = 16,
    nir_gain: Annotated[
        str, typer.Option(help="raw: r = 1; folded: 1/tau in the weights, r = tau/dt.")
    ] = "raw",
    balance: BalanceOption = "relay",
    opset: Annotated[
        int | None, typer.Option(help="Operator set of the ONNX models, 11 to 23; default 20.")
    ] = None,
    onnx_weights: Annotated[
        str | None,
        typer.Option(help="float32, or int8: a second pair of ONNX models a quarter of the size."),
    ] = None,
    golden_images: Annotated[
        str, typer.Option(help="auto, evaluation, synthetic, random, or a FILE.npz.")
    ] = "auto",
    steps: Steps = None,
    dt: Dt = None,
    gain: Gain = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    image_shape: ImageShape = None,
) -> None:
    """Write a sealed bundle: NIR graph, ONNX models, integer Loihi parameters, golden recordings.

    Examples:
      stars-deploy export run --target nir --target onnx --target loihi --out bundle
      stars-deploy export theirs.nir --target onnx --steps 4 --dt 1e-3 --mean 0.5 --std 0.25 \\
        --out bundle
    """
    result = stars_deploy.export(
        source, target=target, out=out, profile=profile, golden=golden, nir_gain=nir_gain,
        balance=balance, golden_images=golden_images, steps=steps, dt=dt, gain=gain, mean=mean,
        std=std, classes=classes, image_shape=image_shape, opset=opset,
        onnx_weights=onnx_weights,
    )  # fmt: skip
    console.emit(result)
    _show_notes(result)
    console.say(f"Bundle: {out} ({', '.join(result['targets'])})")
    own = profile if "loihi" in result["targets"] else "reference"
    next_step(f"stars-deploy validate {quoted(out)} --profile {quoted(own)}")


@command
def check(
    source: Source,
    profile: Profile = "loihi2",
    balance: BalanceOption = "relay",
    picture: Annotated[
        Path | None, typer.Option(help="PNG to draw the cores into, by layer.")
    ] = None,
    steps: Steps = None,
    dt: Dt = None,
    gain: Gain = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    image_shape: ImageShape = None,
) -> None:
    """List everything in a graph that a chip cannot hold or compute, and where its layers lie.

    Example: stars-deploy check bundle --profile loihi2 --picture cores.png
    """
    result = stars_deploy.check(
        source, profile=profile, balance=balance, picture=picture, steps=steps, dt=dt, gain=gain,
        mean=mean, std=std, classes=classes, image_shape=image_shape,
    )  # fmt: skip
    console.emit(result)
    show_placement(result)
    show_findings(result["findings"])
    if picture is not None:
        missing = f"Nothing could be placed: {picture} is not written."
        console.say(f"Picture: {picture}" if result["picture"] else missing)
    if result["exit_code"]:
        verdict = "does not fit" if result["exit_code"] == DoesNotFit.exit_code else "cannot run on"
        console.say(f"{source} {verdict} profile {profile}: see the errors above.")
        raise typer.Exit(result["exit_code"])
    console.say(f"{source} fits profile {profile}.")
    options = reading_options(steps, dt, gain, mean, std, classes, image_shape)
    command = f"stars-deploy simulate {quoted(source)} --profile {quoted(profile)}"
    next_step(command + options)


@command
def simulate(
    source: Source,
    profile: Profile = "loihi2",
    engine: Annotated[
        str | None,
        typer.Option(help="float, integer, onnx, onnx-int8 or lava; default: the profile's."),
    ] = None,
    data: DataOption = None,
    limit: Limit = None,
    device: Device = "auto",
    balance: BalanceOption = "relay",
    steps: Steps = None,
    dt: Dt = None,
    gain: Gain = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    image_shape: ImageShape = None,
) -> None:
    """Run the network as the profile's hardware would: accuracy, spikes, modeled energy.

    Example: stars-deploy simulate bundle --profile loihi2 --data evaluation
    """
    with console.progress() as progress:
        result = stars_deploy.simulate(
            source, profile=profile, engine=engine, data=data, limit=limit, device=device,
            balance=balance, steps=steps, dt=dt, gain=gain, mean=mean, std=std, classes=classes,
            image_shape=image_shape, progress=progress,
        )  # fmt: skip
    console.emit(result)
    _show_notes(result)
    show_simulation(result)
    if (source / "manifest.json").is_file():
        next_step(f"stars-deploy validate {quoted(source)} --profile {quoted(profile)}")
    else:
        options = reading_options(steps, dt, gain, mean, std, classes, image_shape)
        targets = f"--target onnx --target loihi{options}"
        next_step(f"stars-deploy export {quoted(source)} {targets} --out bundle")


@command
def validate(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    profile: Profile = "loihi2",
    engine: Annotated[
        str | None,
        typer.Option(
            help="float, integer, onnx, onnx-int8, lava, hardware or recorded; default: the "
            "profile's."
        ),
    ] = None,
    data: DataOption = None,
    limit: Limit = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            metavar="TEMPLATE",
            help="What engine hardware runs, without a shell; {bundle}, {trace} and {images} are "
            "filled in.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The trace that engine recorded replays; where engine hardware keeps its own "
            "(default: BUNDLE.trace.npz beside the bundle).",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds an engine may take.")] = 900.0,
    device: Device = "auto",
) -> None:
    """Say, layer by layer, whether an engine still computes what training measured.

    Examples:
      stars-deploy validate bundle --engine lava --limit 16
      stars-deploy validate bundle --engine recorded --trace board.npz
    """
    with console.progress() as progress:
        result = stars_deploy.validate(
            bundle, profile=profile, engine=engine, data=data, limit=limit, command=command,
            trace=trace, timeout=timeout, device=device, progress=progress,
        )  # fmt: skip
    console.emit(result)
    show_validation(result)
    if command is not None:
        _say_replay(bundle, profile, data, trace)
    if result["verdict"] != "pass":
        console.complain(f"Error: {result['reason']}")
        raise typer.Exit(ParityError.exit_code)
    next_step(f"open {bundle / 'report.html'} in a browser")


def _say_replay(bundle: Path, profile: str, data: str | None, trace: Path | None) -> None:
    """Say where the trace of a run is, and what judges it again without the board."""
    from stars_deploy.workflow.board import trace_file

    file = str(trace_file(bundle) if trace is None else trace)
    words = ["stars-deploy", "validate", str(bundle), "--profile", profile, "--engine", "recorded"]
    words += ["--trace", file, *([] if data is None else ["--data", data])]
    console.say(f"Trace: {file}; the same verdict without the board: {shlex.join(words)}")


def _show_notes(result: Mapping[str, Any]) -> None:
    """Say what was read into a graph of another tool."""
    for note in result["notes"]:
        console.say(f"Read as: {note}")


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for function in (export, check, simulate, validate):
        add(app, function)
