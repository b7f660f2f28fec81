"""Simulators of other authors, apart from our environment and reached only by files.

    python tests/judges_environment.py        build the environment (make judges)

The environment is a folder of pure Python packages in the user's cache, named after its
requirements. `ask` starts our interpreter on judges_worker.py with that folder first in its path,
so torch is the one that is installed already; nothing of the folder is ever imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import EngineError
from stars_deploy.files import sha256, write_json
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.lava.environment import cache_dir
from stars_deploy.simulation.subprocesses import run_session, tail

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "judges_requirements.txt"
WORKER = HERE / "judges_worker.py"
REMEDY = "build it with `make judges`"
Spikes = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Question:
    """One graph for one judge: spikingjelly, snntorch or snn-mlir.

    images: uint8 [N, C, H, W]; None for snn-mlir, which only reads the graph.
    """

    judge: str
    graph: nir.NIRGraph
    images: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Answer:
    """What a judge said: spikes [T, N, ...] and logits [N, K], or the error it ended with.

    document: what snn-mlir found (ok, errors, decays), as JSON.
    """

    error: str | None
    spikes: Spikes = field(default_factory=dict)
    logits: NDArray[np.float64] | None = None
    document: Mapping[str, Any] = field(default_factory=dict)


def directory() -> Path:
    """Return the environment's folder: other requirements mean another folder."""
    return cache_dir() / f"judges-{sha256(REQUIREMENTS)[:12]}"


def versions() -> dict[str, str]:
    """Return the packages of the environment; EngineError with the remedy if it is not built."""
    try:
        found: dict[str, str] = json.loads((directory() / "ready.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise EngineError(f"the judges' environment is not built: {REMEDY}") from None
    return found


def build() -> dict[str, str]:
    """Build the environment unless it is ready; one build waits for another."""
    folder = directory()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        with contextlib.suppress(EngineError):
            return versions()
        shutil.rmtree(folder, ignore_errors=True)
        install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target"]
        _finished("uv", [*install, str(folder), "--requirement", str(REQUIREMENTS)])
        said = _finished("the judges' import", _worker(folder, "versions"))
        write_json(folder / "ready.json", json.loads(said.splitlines()[-1]))
    return versions()


def ask(questions: Sequence[Question], timeout: float = 300) -> list[Answer]:
    """Write the graphs as our users get them, let the judges read and run them in one process.

    Raises: EngineError when the environment is missing or the process itself fails.
    """
    versions()
    with tempfile.TemporaryDirectory(prefix="judges.") as name:
        folder = Path(name)
        for number, question in enumerate(questions):
            write_graph(question.graph, folder / f"{number}.nir")
            _write_inputs(question, folder / f"{number}.npz")
        names = [question.judge for question in questions]
        (folder / "questions.json").write_text(json.dumps(names))
        _finished("a judge", _worker(directory(), "answer", str(folder)), timeout)
        return [_answer(folder, number) for number in range(len(questions))]


def _write_inputs(question: Question, path: Path) -> None:
    """Write the normalised images [N, C, H, W] float64, T and dt (seconds)."""
    if question.images is None:
        return
    metadata = metadata_of(question.graph)
    mean, std = (np.reshape(x, (-1, 1, 1)) for x in (metadata.mean, metadata.std))
    x = (question.images / 255.0 - mean) / std
    np.savez(path, x=x, T=metadata.T, dt=metadata.dt)


def _answer(folder: Path, number: int) -> Answer:
    document = json.loads((folder / f"{number}.json").read_text("utf-8"))
    if document["error"] is not None or not (folder / f"{number}.answer.npz").is_file():
        return Answer(document["error"], document=document)
    with np.load(folder / f"{number}.answer.npz") as archive:
        arrays = dict(archive)
    logits = arrays.pop("logits")
    return Answer(None, {name.removeprefix("spikes."): s for name, s in arrays.items()}, logits)


def _worker(site: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-I", str(WORKER), str(site), *arguments]


def _finished(what: str, command: list[str], timeout: float = 900) -> str:
    completed = run_session(command, timeout)
    if completed.status:
        raise EngineError(f"{what} failed:\n{tail(completed.stderr)}")
    return completed.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for package, number in build().items():
        print(f"{package} {number}")
