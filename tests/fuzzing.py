"""The contract of every reader of files: success or a helpful StarsError, soon, in little memory.

`attempt` asserts it for one call. It works in the process of the tests: a timer interrupts what
takes too long, the peak of resident memory is measured, and the address space is limited so that a
reader that allocates without measure fails instead of the machine.
"""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stars_deploy.errors import StarsError

MOST_SECONDS = 10.0  # of the processor: others may share the machine
MOST_WAITING = 60.0  # on the clock, for a reader that waits
MOST_BYTES = 1 << 30
_ADDRESS_SPACE = 4 << 30  # beyond what is mapped already


class Broken(AssertionError):
    """A reader broke the contract."""


class _TooSlow(BaseException):  # nobody catches it on the way
    pass


@dataclass(frozen=True)
class Outcome:
    """One call: seconds of the processor, most bytes above the start, the message if refused."""

    seconds: float
    bytes: int
    refused: str | None


def attempt(read: Callable[[], Any]) -> Outcome:
    """Call a reader; Broken where it does anything but succeed or refuse within the limits."""
    before = _start_of_peak()
    begun = time.process_time()
    refused = None
    try:
        with _timer(), _address_space():
            read()
    except StarsError as error:
        refused = str(error)
        if error.exit_code == 1 or not helpful(refused):
            raise Broken(f"unhelpful {type(error).__name__}: {refused!r}") from error
    except OSError as error:  # the command line names the file and ends with 2
        refused = f"{error.filename}: {error.strerror}"
        if error.filename is None:
            raise Broken(f"an OSError without a file: {error!r}") from error
    except _TooSlow:
        raise Broken("took too long") from None
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
    outcome = Outcome(time.process_time() - begun, _peak() - before, refused)
    if outcome.bytes > MOST_BYTES:
        raise Broken(f"{outcome.bytes / 2**20:.0f} MiB of memory")
    return outcome


def helpful(message: str) -> bool:
    """Whether a message has words, and is not of a length that nobody reads."""
    return len(re.findall(r"[A-Za-z]{3,}", message)) > 3 and len(message) < 20_000


@contextlib.contextmanager
def _timer() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    timers = {
        signal.SIGALRM: (signal.ITIMER_REAL, MOST_WAITING),
        signal.SIGPROF: (signal.ITIMER_PROF, MOST_SECONDS),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    try:
        for timer, seconds in timers.values():
            signal.setitimer(timer, seconds, 0.5)  # again: what a callback raises may be lost
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def _address_space() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _start_of_peak() -> int:
    """Begin a new measurement of the peak; return the resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10
