"""Reading and writing files so that a failed command leaves earlier results as they were."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import re
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import InputError

Array = NDArray[Any]

JSON_BYTES = 64 << 20
UNPACKED, MOST_RATIO = 512 << 20, 64  # bytes a packed file may hold; or times its own size

# What zipfile, zlib and NumPy raise for a damaged npz.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    KeyError,
    NotImplementedError,
    RuntimeError,  # encrypted
    MemoryError,  # a header that declares more than there is
    SyntaxError,  # a header that is no Python literal
    tokenize.TokenError,
    TypeError,
    OverflowError,
    lzma.LZMAError,
)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on error.

    Raises: InputError where `path` is something else than a file: a folder, a device, a link.
    """
    if path.is_symlink():  # neither the link nor what it points at was made here
        raise InputError(f"{path}: is a symbolic link; remove it, or give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: exists and is not a file; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
    except OSError as problem:
        problem.filename = str(path)  # not the temporary, which the user never named
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp files are private; results get the permissions a plain open() would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.filename in (None, name):
            problem.filename = str(path)  # a full disk does not say whose write it stopped
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporaries of `atomic_path` for `path` whose process was killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(path.suffix)}")
    for left in path.parent.glob(".*"):
        if pattern.fullmatch(left.name) and left.is_file() and not left.is_symlink():
            left.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path, refuse: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` as a whole on success.

    `refuse` raises unless what lies at `path` then may be removed; without it, only an empty
    directory is replaced: OSError where something came there in the meantime.
    """
    path = path.absolute() if refuse else path.resolve()
    if path == Path.cwd():
        raise InputError(f"{path}: is the current folder and cannot be replaced; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if refuse and path.exists():
            refuse(path)  # again: since the command began, somebody may have put a file there
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / "old")
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_texts(contents: Mapping[Path, str]) -> None:
    """Write several text files; none of them is replaced before all are on the disk."""
    with contextlib.ExitStack() as stack:
        for path, text in contents.items():
            stack.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """Return `value` as indented JSON; NaN and infinity are refused.

    A byte of a file name that is no UTF-8 becomes a question mark.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace").decode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity are refused."""
    write_text(path, json_text(value))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; ValueError for whatever could not be written again.

    That is malformed or too deeply nested text, NaN, infinity, and half a surrogate pair.
    """
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def require_plain(path: Path, error: type[InputError], limit_bytes: int) -> None:
    """Refuse what is no regular file (a pipe waits, a device never ends), or a larger one."""
    if not path.exists():
        raise error(f"{path}: no such file")
    if not path.is_file():
        raise error(f"{path}: not a file")
    size = path.stat().st_size
    if size > limit_bytes:
        raise error(f"{path}: has {size} bytes, the limit for such a file is {limit_bytes}")


def require_proportion(path: Path, declared: int, error: type[InputError]) -> None:
    """Refuse a compressed file that unpacks to far more bytes than lie on the disk."""
    most = max(UNPACKED, MOST_RATIO * path.stat().st_size)
    if declared > most:
        raise error(
            f"{path}: unpacks to {declared} bytes, the limit for a file of its size is {most}; "
            "if they are meant, store them uncompressed"
        )


def read_json(path: Path, error: type[InputError] = InputError) -> Any:
    """Read a JSON file; `error` is raised when it is missing, malformed or larger than 64 MiB."""
    require_plain(path, error, JSON_BYTES)
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise error(f"{path}: not valid JSON ({problem})") from None


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a compressed npz atomically; equal arrays give equal bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]


def read_npz(
    path: Path, error: type[InputError] = InputError, limit_bytes: int = 4 << 30
) -> dict[str, Array]:
    """Read an npz without pickle; refuse one whose arrays declare more than `limit_bytes`.

    Or far more than lies on the disk (require_proportion), so memory stays near what is there.
    """
    require_plain(path, error, limit_bytes)
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > limit_bytes:
            raise error(f"{path}: holds {total} bytes of arrays, the limit is {limit_bytes}")
        require_proportion(path, total, error)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except _DAMAGE as problem:
        raise error(f"{path}: not a readable npz file ({problem})") from None
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):  # NumPy gives bytes for a member that is no array
            raise error(f"{path}: member {key!r} is not an array")
    return arrays


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
