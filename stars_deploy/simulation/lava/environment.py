"""The Python 3.10 environment that Lava needs, apart from ours and reached only by files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stars_deploy.assets import asset
from stars_deploy.console import Progress, no_progress
from stars_deploy.errors import EngineError
from stars_deploy.files import sha256, write_json
from stars_deploy.simulation.subprocesses import run_session, tail

REMEDY = "build it with `stars-deploy doctor --fix` (in a checkout: `make lava`)"
_SETTING = "STARS_DEPLOY_PYTHON310"
_CHECK = """
import json, platform
from importlib import metadata
import lava.proc.lif.process, lava.lib.dl.netx.hdf5
names = ("lava-nc", "lava-dl", "numpy", "torch")
versions = {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
print("versions " + json.dumps(versions))
"""


@dataclass(frozen=True)
class EnvironmentStatus:
    """The Lava environment: where it is, whether it can be used, what it holds."""

    directory: Path
    ready: bool
    reason: str
    versions: Mapping[str, str]

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.directory / "bin" / "python"


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return our folder in the user's cache; STARS_DEPLOY_CACHE replaces it."""
    if env.get("STARS_DEPLOY_CACHE"):
        return Path(env["STARS_DEPLOY_CACHE"]).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "stars-deploy"


def requirements() -> Path:
    """Return the pinned requirements of the Lava environment."""
    return asset("export", "requirements-lava.txt")


def environment_dir() -> Path:
    """Return the environment's folder: other requirements mean another folder."""
    return cache_dir() / f"lava-{sha256(requirements())[:12]}"


def environment_status() -> EnvironmentStatus:
    """Return whether the Lava environment can be used, without starting anything."""
    directory = environment_dir()
    try:
        versions = json.loads((directory / "ready.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        reason = "half built" if directory.is_dir() else "not built"
        return EnvironmentStatus(directory, False, reason, {})
    if not (directory / "bin" / "python").exists():
        return EnvironmentStatus(directory, False, "its Python 3.10 was removed", versions)
    return EnvironmentStatus(directory, True, "ready", versions)


def other_environments() -> list[Path]:
    """Return the environments of other requirements, each of several GB."""
    folders = cache_dir().glob("lava-*/")
    return sorted(path for path in folders if path.is_dir() and path != environment_dir())


def require_environment() -> EnvironmentStatus:
    """Return the environment if it is ready; raise EngineError with the remedy if not."""
    status = environment_status()
    if not status.ready:
        raise EngineError(f"the Lava environment is {status.reason}: {REMEDY}")
    return status


def build_environment(progress: Progress = no_progress) -> EnvironmentStatus:
    """Build the Lava environment unless it is ready.

    Two builds never mix: the second waits for the first. A build that was interrupted left no
    ready.json, so the next one starts from nothing. Raises EngineError with uv's own words.
    """
    directory = environment_dir()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_suffix(".lock"), progress):
        if environment_status().ready:
            return environment_status()
        if directory.exists():
            shutil.rmtree(directory)
        _build(directory, progress)
    return environment_status()


def _build(directory: Path, progress: Progress) -> None:
    python = directory / "bin" / "python"
    with _step(progress, "finding Python 3.10"):
        base = find_python310()
    with _step(progress, "creating the Lava environment"):
        _uv("venv", "--no-project", "--python", str(base), str(directory))
    with _step(progress, "installing Lava"):
        _uv("pip", "install", "--python", str(python), "-r", str(requirements()))
    with _step(progress, "importing Lava"):
        versions = _versions(python)
    write_json(directory / "ready.json", versions)


def _versions(python: Path) -> dict[str, str]:
    checked = run_session([str(python), "-I", "-c", _CHECK], timeout=600)
    lines = [line for line in checked.stdout.splitlines() if line.startswith("versions ")]
    if checked.status or not lines:
        raise EngineError(f"the new environment cannot import Lava:\n{tail(checked.stderr)}")
    versions: dict[str, str] = json.loads(lines[-1].removeprefix("versions "))
    return versions


@contextlib.contextmanager
def _step(progress: Progress, description: str) -> Iterator[None]:
    progress(description, 0, 1)
    yield
    progress(description, 1, 1)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    import fcntl  # POSIX only, as run_session

    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the Lava environment", 0, 1)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def find_python310(env: Mapping[str, str] = os.environ) -> Path:
    """Return a Python 3.10 that starts.

    In order: STARS_DEPLOY_PYTHON310, `python3.10` on PATH, pyenv's versions folder, uv's download.
    Raises EngineError if the setting names something else, or if there is none at all.
    """
    setting = env.get(_SETTING)
    if setting:
        if _is_python310(Path(setting)):
            return Path(setting)
        raise EngineError(f"{_SETTING}={setting}: expected a Python 3.10 that starts")
    for candidate in (*_on_path(env), *_from_pyenv(env)):
        if _is_python310(candidate):
            return candidate
    return _from_uv()


def _is_python310(candidate: Path) -> bool:
    """Return whether the program starts and says that it is Python 3.10 (a pyenv shim may not)."""
    try:
        code = "import sys; print(*sys.version_info[:2])"
        answer = run_session([str(candidate), "-I", "-c", code], timeout=30)
    except EngineError:
        return False
    return answer.status == 0 and answer.stdout.split() == ["3", "10"]


def _on_path(env: Mapping[str, str]) -> list[Path]:
    folders = env.get("PATH", "").split(os.pathsep)
    found = (shutil.which("python3.10", path=folder) for folder in folders if folder)
    return [Path(program) for program in found if program]


def _from_pyenv(env: Mapping[str, str]) -> list[Path]:
    root = Path(env.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    versions = [path for path in root.glob("versions/3.10.*") if path.name[5:].isdigit()]
    versions.sort(key=lambda path: int(path.name[5:]), reverse=True)
    return [path / "bin" / "python3.10" for path in versions]


def _from_uv() -> Path:
    try:
        _uv("python", "install", "3.10")
        found = _uv(
            "python", "find", "--system", "--python-preference", "only-managed", "3.10"
        ).strip()
    except EngineError as problem:
        raise EngineError(
            "Lava needs Python 3.10, and neither PATH, pyenv nor uv has one: install Python 3.10 "
            f"or set {_SETTING} to one\n{problem}"
        ) from None
    return Path(found)


def _uv(*arguments: str) -> str:
    """Run the uv of our own environment; return its stdout."""
    import uv

    completed = run_session([str(uv.find_uv_bin()), *arguments])
    if completed.status:
        raise EngineError(f"uv {' '.join(arguments[:2])} failed:\n{tail(completed.stderr)}")
    return completed.stdout
