"""Checkpoints of a run: one file, replaced as a whole, read without unpickling code."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stars_deploy.errors import InputError
from stars_deploy.files import write_bytes

SCHEMA = 2
FILE = Path("checkpoint") / "state.pt"
# What torch.load raises for a damaged file: unpickling junk ends in all kinds of ways.
_DAMAGE = (
    RuntimeError,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
MAX_SHARE = 0.05  # of a run's time that writing checkpoints may take


def save(run: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; a reader sees the old file or the new one, never a part."""
    content = io.BytesIO()  # torch reports a full disk as a RuntimeError, Python as an OSError
    torch.save({"schema": SCHEMA, **state}, content)
    write_bytes(run / FILE, content.getvalue())


def load(run: Path) -> dict[str, Any] | None:
    """Return the state of a run, or None if it never wrote one.

    Raises:
        InputError: the file is damaged or from another version of the format.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about files that are not its own
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as problem:
        raise _damaged(run, problem) from None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA or "session" not in state:
        raise InputError(f"{path}: not a checkpoint of schema {SCHEMA}; start the run again")
    with restoring(run):
        _require_whole(state)
    return state


@contextlib.contextmanager
def restoring(run: Path) -> Iterator[None]:
    """Turn what comes of taking up the state of a damaged checkpoint into an InputError."""
    try:
        yield
    except _DAMAGE as problem:
        raise _damaged(run, problem) from None


def _damaged(run: Path, problem: BaseException) -> InputError:
    detail = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    return InputError(
        f"{run / FILE}: damaged checkpoint ({detail}); delete the run and start it again"
    )


def _require_whole(state: Mapping[str, Any]) -> None:
    """Raise ValueError unless the state's numbers and its pool of images are what they must be."""
    for key, most in (("done", 1 << 62), ("metrics_size", 1 << 62), ("threads", 1 << 16)):
        if type(state[key]) is not int or not 0 <= state[key] <= most:
            raise ValueError(f"{key} is {str(state[key])[:80]}")
    if type(state["seconds"]) is not float or not math.isfinite(state["seconds"]):
        raise ValueError(f"seconds is {str(state['seconds'])[:80]}")
    images, labels = state["session"]["pool"]["images"], state["session"]["pool"]["labels"]
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError("its pool holds no images uint8 [N, C, H, W] with labels")
    if not len(images) <= state["session"]["pool"]["capacity"] <= 1 << 26:
        raise ValueError(f"its pool has room for {state['session']['pool']['capacity']} images")


class Timer:
    """Says when the next checkpoint is due: after `seconds`, later if writing one takes long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._wait = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether enough time has passed."""
        return time.monotonic() - self._last >= self._wait

    def measure(self, write: Callable[[], None]) -> None:
        """Write a checkpoint and start the next interval."""
        begun = time.monotonic()
        write()
        self._last = time.monotonic()
        if self._seconds > 0:
            self._wait = max(self._seconds, (self._last - begun) / MAX_SHARE)
