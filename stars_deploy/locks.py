"""One writer at a time: a second command on the same results is refused instead of mixing them.

The lock is the operating system's (flock), so it ends with the process however that ends, and a
file that a killed process left behind locks nothing. The file lies beside the results, not in
them, because a bundle is sealed and replaced as a whole. Written here because filelock leaves its
file behind for ever and does not say who holds it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from stars_deploy.console import say
from stars_deploy.errors import InputError
from stars_deploy.files import parse_json

P = ParamSpec("P")
R = TypeVar("R")

_HELD = {errno.EACCES, errno.EAGAIN}
# A file system that knows no locks, or none on folders.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}
_LONGEST_NOTE = 4096


def one_writer(parameter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: while the function runs, the folder in `parameter` is `claimed`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R:
            with claimed(signature.bind(*args, **kwargs).arguments[parameter]):
                return function(*args, **kwargs)

        return alone

    return decorate


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which need not exist yet; it is the same by every path to it.

    Where nothing can be written beside an existing folder, the folder itself is locked.
    Raises: InputError that says who holds it; OSError where no lock file can be made.
    """
    whole = folder.resolve()
    file = whole.parent / f".{whole.name}.lock"
    made = [parent for parent in file.parents if not parent.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(folder, whole, file)
        try:
            yield
        finally:
            _release(handle, file)
    finally:
        for parent in made:  # a command that failed leaves no empty folders
            with contextlib.suppress(OSError):
                parent.rmdir()


def _lock(folder: Path, whole: Path, file: Path) -> int:
    while True:
        handle = _open(whole, file)
        try:
            _flock(folder, handle, file)
            if _current(handle, whole, file):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder removed it in between


def _open(whole: Path, file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and whole.is_dir():
            return os.open(whole, os.O_RDONLY | os.O_CLOEXEC)
        raise


def _flock(folder: Path, handle: int, file: Path) -> None:
    try:
        import fcntl
    except ImportError:
        say(f"{folder}: this system has no flock; start no second command that writes there")
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in _HELD:
            raise InputError(_refusal(folder, file)) from None
        if problem.errno not in _NO_LOCKS:
            raise
        say(f"{folder}: its file system has no locks; start no second command that writes there")


def _current(handle: int, whole: Path, file: Path) -> bool:
    """Say whether `handle` is still what lies there, and leave a note of who holds it."""
    for place in (file, whole):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), place.lstat()):
                if place == file:
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, _note(), 0)
                return True
    return False


def _note() -> bytes:
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }
    return json.dumps(note).encode()


def _refusal(folder: Path, file: Path) -> str:
    holder, remedy = "another command", "wait for it"
    # The note may be half-written, or of a holder of the folder itself, who leaves none.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note: dict[str, Any] = parse_json(file.read_text()[:_LONGEST_NOTE])
        holder = (
            f"process {int(note['pid'])} on {note['host']} since {note['since']} "
            f"({note['command']})"
        )
        remedy = f"wait for it, stop it there with kill {int(note['pid'])},"
    return f"{folder}: is being written by {holder}; {remedy} or give another folder"


def _release(handle: int, file: Path) -> None:
    """Remove the lock file while it is still locked: whoever opened it meanwhile tries again."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(handle), file.lstat()):
            file.unlink()
    os.close(handle)
