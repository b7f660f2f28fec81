"""Every error a user can cause, and the exit code each one ends in.

    StarsError                 1   a defect of ours
    +- TrainingDiverged        1   NaN or infinite loss; the last good checkpoint stays
    +- InputError              2   bad usage or input
    |  +- RecipeError          2   unknown key, bad value, unknown recipe or profile
    |  +- WeightsError         2   missing, truncated or foreign checkpoint
    |  +- DataError            2   data set absent, wrong shape, not images
    |  +- GraphError           2   .nir truncated, hostile or with unsupported nodes
    |  +- BundleError          2   incomplete or tampered bundle
    +- ParityError             3   engines disagree
    +- DoesNotFit              4   limits of the hardware profile exceeded
    +- EngineError             5   engine absent, crashed or timed out

A message names who (file, option, node), the value, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StarsError(Exception):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 1


class TrainingDiverged(StarsError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class InputError(StarsError):
    """Bad usage or bad input."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe or profile is unknown or has a wrong key or value."""


class WeightsError(InputError):
    """A checkpoint is missing, truncated, tampered or of another architecture."""


class DataError(InputError):
    """A data set is absent or is not what the network takes."""


class GraphError(InputError):
    """A .nir file cannot be read safely or holds something we cannot run."""


class BundleError(InputError):
    """A bundle is incomplete or its files do not match its manifest."""


class ParityError(StarsError):
    """Two engines that must agree do not."""

    exit_code = 3


class DoesNotFit(StarsError):
    """A network exceeds a limit of the hardware profile."""

    exit_code = 4


class EngineError(StarsError):
    """The engine or environment asked for is absent, crashed or timed out."""

    exit_code = 5


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, else the list of valid names."""
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(choices)}" if choices else ""
