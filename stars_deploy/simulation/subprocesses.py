"""Running another program so that nothing of it is left behind.

The program gets its own session. It ends with us: on a time-out, on Ctrl-C, and (through a pipe
that closes when this process dies, however it dies) when this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stars_deploy.errors import EngineError

_GRACE_S = 5.0
_KEPT = 1 << 20  # bytes of output that are returned


@dataclass(frozen=True)
class Completed:
    """A program that ended by itself: exit status, output, and how long it took in seconds."""

    status: int
    stdout: str
    stderr: str
    seconds: float


class TimedOut(EngineError):
    """A program did not end in the time it was given; all its processes were ended."""


def run_session(
    command: Sequence[str], timeout: float | None = None, env: Mapping[str, str] | None = None
) -> Completed:
    """Run a command in a session of its own and return its output.

    Output goes to files, not pipes: a grandchild that outlives its parent cannot block us.
    Raises EngineError when the program cannot be started, TimedOut after `timeout` seconds.
    """
    if os.name != "posix":
        raise EngineError(f"{command[0]}: needs Linux or macOS (process groups), this is {os.name}")
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=dict(clean_environment() if env is None else env),
                start_new_session=True,
            )
        except OSError as problem:
            raise EngineError(f"{command[0]}: cannot be started ({problem.strerror})") from None
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            end_session(process)
            raise TimedOut(
                f"no answer within {timeout:g} s; its processes were ended\n{tail(_text(err))}"
            ) from None
        finally:
            end_session(process)
        return Completed(status, _text(out), _text(err), time.monotonic() - started)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End every process of a session started by `run_session`.

    SIGTERM first: Python's resource tracker ignores it and, once the others are gone, removes
    their shared memory. What is left after a few seconds is killed.
    """
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for signal_, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        process.poll()
        if not _running(process.pid):
            break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal_)
        deadline = time.monotonic() + patience
        while _running(process.pid) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.02)
    process.wait()


def _running(group: int) -> bool:
    """Return whether a process group has members that have not ended.

    Zombies do not count: in a container nobody may collect the orphans of a group.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    if not Path("/proc/self/stat").exists():
        return True
    return any(_is_member(stat, group) for stat in Path("/proc").glob("[0-9]*/stat"))


def _is_member(stat: Path, group: int) -> bool:
    try:
        # "pid (name) state parent group ..."; the name may hold spaces and parentheses.
        state, _, own_group = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(own_group) == group and state not in "ZX"


def clean_environment() -> dict[str, str]:
    """Return our environment without what would lead another Python to our packages."""
    leaks = ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(leaks)}


def tail(text: str, lines: int = 12) -> str:
    """Return the last lines of a program's output."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _text(stream: IO[bytes]) -> str:
    """Return the end of what a program wrote; one that never stopped may have filled the disk."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _KEPT))
    return stream.read().decode("utf-8", errors="replace")
