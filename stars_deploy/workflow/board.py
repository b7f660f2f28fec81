"""Engines that run elsewhere: running a command for a trace, keeping it, replaying it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stars_deploy.console import Progress
from stars_deploy.errors import DataError, InputError
from stars_deploy.files import write_npz
from stars_deploy.simulation.board_command import EXAMPLE, BoardCommand, parse_command
from stars_deploy.simulation.recorded_engine import RecordedEngine
from stars_deploy.simulation.trace import Trace, read_trace
from stars_deploy.validation.engines import OUTSIDE


@dataclass(frozen=True)
class Elsewhere:
    """Where the answers of engine hardware or recorded come from.

    Attributes:
        command: what reaches the board; None for recorded.
        file: the trace, to be read (recorded) or to be kept (hardware).
        trace: what `file` holds; None for hardware, whose run is still to come.
    """

    command: BoardCommand | None
    file: Path
    trace: Trace | None


def open_elsewhere(
    engine: str, bundle: Path, command: str | None, trace: Path | None
) -> Elsewhere | None:
    """Check --command and --trace against the engine; None for an engine that runs here.

    Raises: InputError for an option that is missing or has no use, or for a place where a trace
        would do harm; DataError for a damaged trace.
    """
    if command is not None and engine != "hardware":
        raise InputError(f"--command is for --engine hardware, this is engine {engine}")
    if trace is not None and engine not in OUTSIDE:
        raise InputError(f"--trace is for --engine hardware or recorded, this is engine {engine}")
    if engine == "recorded":
        if trace is None:
            raise InputError("--engine recorded: needs --trace FILE, a trace of run_lava.py")
        return Elsewhere(None, trace, read_trace(trace))
    if engine != "hardware":
        return None
    if command is None:
        raise InputError(f"--engine hardware: needs --command TEMPLATE, for example\n    {EXAMPLE}")
    file = trace_file(bundle) if trace is None else trace
    parsed = parse_command(command)
    _check_place(file, bundle)
    return Elsewhere(parsed, file, None)


def trace_file(bundle: Path) -> Path:
    """Return where the trace of a bundle is kept: beside it, since the bundle is sealed."""
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}.trace.npz")


def run_elsewhere(
    elsewhere: Elsewhere,
    bundle: Path,
    images: NDArray[np.uint8],
    timeout: float | None,
    progress: Progress,
) -> RecordedEngine:
    """Return an engine that plays the trace; for a command, run it first and keep what it wrote.

    A trace replaces an earlier one only after it was found to be whole and about this bundle and
    these images. Errors as BoardCommand.run and RecordedEngine.
    """
    if elsewhere.trace is not None:
        return RecordedEngine(elsewhere.trace, bundle, images)
    if elsewhere.command is None:
        raise ValueError("neither a command nor a trace")
    elsewhere.file.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of the result: that it can be written is known before a board is asked.
    with tempfile.TemporaryDirectory(
        prefix=f".{elsewhere.file.name}.", dir=elsewhere.file.parent
    ) as folder:
        given, written = Path(folder, "images.npz"), Path(folder, "trace.npz")
        write_npz(given, {"images": images})
        progress("hardware: command", 0, 1)
        elsewhere.command.run(bundle, written, given, timeout)
        progress("hardware: command", 1, 1)
        try:
            engine = RecordedEngine(read_trace(written), bundle, images)
        except DataError as problem:
            raise DataError(f"--command wrote a trace that is not usable: {problem}") from None
        written.replace(elsewhere.file)
    return engine


def _check_place(file: Path, bundle: Path) -> None:
    """Refuse to write a trace into a sealed bundle, or over something that is no trace."""
    if file.resolve().is_relative_to(bundle.resolve()):
        raise InputError(
            f"--trace {file}: lies in the bundle, which is sealed; choose a place outside, "
            f"such as {trace_file(bundle)}"
        )
    if not (file.exists() or file.is_symlink()):
        return
    try:
        if file.is_symlink():
            raise DataError("a link")
        read_trace(file)
    except (DataError, OSError):
        raise InputError(
            f"--trace {file}: exists and is no usable trace, so it is not replaced; move it away "
            "or choose another --trace"
        ) from None
