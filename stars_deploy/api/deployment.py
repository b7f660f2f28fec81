"""From a run to a chip: `export`, `check`, `simulate`, `validate`, `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stars_deploy.api.arguments import (
    Names,
    Numbers,
    PathLike,
    Progress,
    at_least,
    no_progress,
    optional_path,
    optional_text,
)

if TYPE_CHECKING:
    from stars_deploy.results.deployment import Checked, Exported, Simulated, Swept
    from stars_deploy.results.validation import Validated


def export(
    source: PathLike,
    *,
    target: str | Sequence[str],
    out: PathLike,
    profile: PathLike = "loihi2",
    golden: int = 16,
    nir_gain: str = "raw",
    balance: str = "relay",
    opset: int | None = None,
    onnx_weights: str | None = None,
    golden_images: PathLike = "auto",
    steps: int | None = None,
    dt: float | None = None,
    gain: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: Names | None = None,
    image_shape: str | Sequence[int] | None = None,
) -> Exported:
    """Write a sealed bundle: NIR graph, ONNX models, integer Loihi parameters, golden recordings.

    The bundle appears as a whole or not at all, and replaces nothing but a bundle.

    Args:
        source: a run, a bundle or a .nir file.
        target: one or several of nir, onnx, loihi; nir is always written.
        out: the folder of the bundle.
        profile: the name of a hardware profile, or its TOML file.
        golden: images recorded in golden.npz.
        nir_gain: raw (r = 1) or folded (1/tau in the weights, r = tau/dt).
        balance: how skips wait on a chip: relay or delay.
        opset: operator set of the ONNX models, 11 to 23; 20 if None.
        onnx_weights: float32, or int8: a second pair of ONNX models with int8 weights.
        golden_images: auto, evaluation, synthetic, random, or an npz file of images.
        steps, dt, gain, mean, std, classes, image_shape: what a .nir file of another tool leaves
            open: steps per image, seconds per step, raw or discrete r, mean and standard deviation
            of pixel / 255 (one number or one per channel), names of the logits, [C, H, W].

    Returns:
        bundle, targets, profile, onnx, source, golden, notes, files, tool_version.

    Raises:
        InputError: an unknown target or value, or an OUT that would be lost.
        GraphError, DoesNotFit: the graph cannot be lowered to the profile; lists every reason.

    Example:
        >>> stars_deploy.export("run", target=["onnx", "loihi"], out="bundle")["files"]
    """
    from stars_deploy.workflow.export import export as write_bundle
    from stars_deploy.workflow.reading import parse_reading

    at_least(1, golden=golden, steps=steps)
    targets = [target] if isinstance(target, str) else target
    reading = parse_reading(steps, dt, gain, mean, std, classes, image_shape)
    result = write_bundle(
        Path(source), targets, str(profile), golden, nir_gain, Path(out), reading,
        str(golden_images), balance, opset, onnx_weights,
    )  # fmt: skip
    return cast("Exported", result)


def check(
    source: PathLike,
    *,
    profile: PathLike = "loihi2",
    balance: str = "relay",
    picture: PathLike | None = None,
    steps: int | None = None,
    dt: float | None = None,
    gain: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: Names | None = None,
    image_shape: str | Sequence[int] | None = None,
) -> Checked:
    """List everything in a graph that a chip cannot hold or compute, and where its layers lie.

    Args:
        source: a run, a bundle or a .nir file.
        profile: the name of a hardware profile, or its TOML file.
        balance: how skips wait on a chip: relay or delay.
        picture: a PNG to draw the cores into; not written where nothing can be placed.
        steps, dt, gain, mean, std, classes, image_shape: as for export.

    Returns:
        source, profile, findings, placement, picture, tool_version, and exit_code: 0 where the
        graph fits, 2 where an operator is missing, 4 where a limit is exceeded. That is the
        verdict; no exception is raised for it.

    Raises:
        GraphError, BundleError: there is no graph to look at. RecipeError: an unknown profile.

    Example:
        >>> [f["message"] for f in stars_deploy.check("bundle", profile="loihi1")["findings"]]
    """
    from stars_deploy.workflow.check import check as find
    from stars_deploy.workflow.reading import parse_reading

    at_least(1, steps=steps)
    reading = parse_reading(steps, dt, gain, mean, std, classes, image_shape)
    result = find(Path(source), str(profile), reading, balance, optional_path(picture))
    return cast("Checked", result)


def simulate(
    source: PathLike,
    *,
    profile: PathLike = "loihi2",
    engine: str | None = None,
    data: PathLike | None = None,
    limit: int | None = None,
    device: str = "auto",
    balance: str = "relay",
    steps: int | None = None,
    dt: float | None = None,
    gain: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: Names | None = None,
    image_shape: str | Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> Simulated:
    """Run the network as the profile's hardware would: accuracy, spikes, modeled energy.

    Args:
        source: a run, a bundle or a .nir file.
        profile: the name of a hardware profile, or its TOML file.
        engine: float, integer, onnx or lava; the profile's own if None.
        data: a data set's name, a folder of idx files, or an npz; golden images if None.
        limit: use only the first images.
        device: auto, cpu or cuda.
        balance: how skips wait on a chip: relay or delay.
        steps, dt, gain, mean, std, classes, image_shape: as for export.
        progress: called with what is done, images completed, and images in all.

    Returns:
        profile, engine, images, n, accuracy (None without labels), layers, energy, notes,
        tool_version.

    Raises:
        InputError, GraphError, DoesNotFit, DataError; EngineError: the engine is absent or failed.

    Example:
        >>> stars_deploy.simulate("bundle", data="evaluation", limit=100)["accuracy"]
    """
    from stars_deploy.workflow.reading import parse_reading
    from stars_deploy.workflow.simulate import simulate as run

    at_least(1, limit=limit, steps=steps)
    reading = parse_reading(steps, dt, gain, mean, std, classes, image_shape)
    result = run(
        Path(source), str(profile), engine, optional_text(data), limit, device, progress, reading,
        balance,
    )  # fmt: skip
    return cast("Simulated", result)


def validate(
    bundle: PathLike,
    *,
    profile: PathLike = "loihi2",
    engine: str | None = None,
    data: PathLike | None = None,
    limit: int | None = None,
    command: str | None = None,
    trace: PathLike | None = None,
    timeout: float = 900.0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Validated:
    """Say, layer by layer, whether an engine still computes what training measured.

    Writes validation.json, report.html and card.md into the bundle.

    Args:
        bundle: the folder of a bundle.
        profile: the name of a hardware profile, or its TOML file.
        engine: float, integer, onnx, lava, hardware or recorded; the profile's own if None.
        data: a data set's name, a folder of idx files, or an npz; the golden images if None.
        limit: use only the first images.
        command: what engine hardware runs, without a shell; {bundle}, {trace}, {images} are
            filled in.
        trace: the trace that engine recorded replays, or where engine hardware keeps its own.
        timeout: seconds that an engine may take.
        device: auto, cpu or cuda.
        progress: called with what is done, images completed, and images in all.

    Returns:
        validation.json. `verdict` is "pass" or "fail", `reason` the first failure in words: a
        failed verdict is returned, not raised (the command ends with 3).

    Raises:
        BundleError, InputError, DataError, EngineError; nothing is written then.

    Example:
        >>> stars_deploy.validate("bundle", engine="onnx")["verdict"]
    """
    from stars_deploy.workflow.validate import validate as judge

    at_least(1, limit=limit, timeout=timeout)
    result = judge(
        Path(bundle), str(profile), engine, optional_text(data), limit, timeout, device, progress,
        command, optional_path(trace),
    )  # fmt: skip
    return cast("Validated", result)


def sweep(
    source: PathLike,
    *,
    out: PathLike,
    profile: PathLike = "loihi2",
    over: str | None = None,
    steps: str | Sequence[int] | None = None,
    bits: str | Sequence[int] | None = None,
    engine: str | None = None,
    data: PathLike | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Swept:
    """Plot accuracy and spikes against time steps and weight bits, with 95 % intervals.

    Args:
        source: a run, a bundle or a .nir file.
        out: the folder of sweep.json and sweep.png.
        profile: the name of a hardware profile, or its TOML file.
        over: T, bits or both; what the engine has if None.
        steps: numbers of steps; 1, 2, 4, 6, 8 and the graph's own if None.
        bits: weight bits; the profile's and fewer if None.
        engine: float or integer; the profile's own if None.
        data, limit, device, progress: as for simulate.

    Returns:
        sweep.json: one entry of `points` per engine, T and bits.

    Raises:
        InputError: a value out of range, or an OUT that no sweep wrote. GraphError, DoesNotFit,
        DataError.

    Example:
        >>> stars_deploy.sweep("bundle", bits=[8, 4], data="evaluation", out="sweep")["points"]
    """
    from stars_deploy.workflow.sweep import sweep as run
    from stars_deploy.workflow.sweep_plan import parse_values

    at_least(1, limit=limit)
    result = run(
        Path(source), str(profile), Path(out), over, parse_values(steps, "--steps"),
        parse_values(bits, "--bits"), engine, optional_text(data), limit, device, progress,
    )  # fmt: skip
    return cast("Swept", result)
