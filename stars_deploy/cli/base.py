"""What every command shares: errors become messages and exit codes, --json stays clean."""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ParamSpec, TypeVar

import typer

from stars_deploy import console
from stars_deploy.cli.interruption import afterwards
from stars_deploy.errors import StarsError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
SMALLER = "ask for fewer images or steps, or a smaller batch or network"


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn whatever a command raises into a message and the exit code documented for it."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _termination_interrupts():
                return function(*args, **kwargs)
        except typer.Exit:
            raise
        except StarsError as error:
            raise _fail(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            after = afterwards(function.__name__, kwargs.get("out"))
            raise _fail(f"interrupted; {after}", INTERRUPTED) from None
        except OSError as error:
            raise _fail(explain_os_error(error), 2) from None
        except Exception as error:
            if _out_of_memory(error):
                raise _fail(f"not enough memory ({error}); {SMALLER}", 2) from None
            text = f"{type(error).__name__}: {error}"
            raise _fail(
                f"a defect of stars-deploy: {text}\n"
                "Please report it with the output of the same command under -v "
                "and of `stars-deploy doctor`.",
                1,
            ) from None

    return guarded


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM, which batch systems and `kill` send, end the command as Ctrl-C does."""
    ours = threading.current_thread() is threading.main_thread()
    # Whoever ignores the signal, or handles it, keeps doing so.
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out; torch has an error of its own, and no class for the CPU's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def explain_os_error(error: OSError) -> str:
    """Return which file could not be read or written, and why."""
    place = error.filename or "a file"
    reason = error.strerror or str(error)
    return f"{place}: {reason}; expected a readable input and a writable output with free space"


def _fail(message: str, code: int) -> typer.Exit:
    if console.settings.verbose:
        traceback.print_exc()
    console.complain(f"Error: {message}")
    console.emit({"error": {"message": message, "exit_code": code}})
    return typer.Exit(code)


def quoted(word: object) -> str:
    """Return a path or name as a shell takes it, for a command that is shown."""
    return shlex.quote(str(word))


def next_step(text: str) -> None:
    """Name the next useful command."""
    console.say(f"Next: {text}")
