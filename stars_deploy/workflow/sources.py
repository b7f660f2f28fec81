"""SOURCE of a command: a run, a bundle or a .nir file, and the graph in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nir

from stars_deploy.errors import GraphError, InputError
from stars_deploy.files import read_json, sha256
from stars_deploy.graph.canonical import canonical
from stars_deploy.graph.foreign import Adopted, Reading, adopt
from stars_deploy.graph.foreign_structure import Note
from stars_deploy.graph.problems import refuse, require_runnable
from stars_deploy.graph.reader import load_graph
from stars_deploy.targets.bundle import MANIFEST, Bundle, open_bundle

STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Source:
    """What SOURCE names.

    Attributes:
        path: as given.
        graph: the runnable graph in it.
        bundle: the opened bundle, if it is one.
        notes: what was read into a graph that another tool wrote.
    """

    path: Path
    kind: Literal["run", "bundle", "nir"]
    graph: nir.NIRGraph
    bundle: Bundle | None = None
    notes: tuple[Note, ...] = ()

    def provenance(self) -> dict[str, Any]:
        """Return what a manifest says about the source: kind, name and SHA-256, no machine path."""
        if self.bundle is not None:
            return dict(self.bundle.manifest["source"])
        file = self.path / STUDENT if self.kind == "run" else self.path
        made = _how_it_was_made(self.path) if self.kind == "run" else {}
        if self.notes:
            made["read_as"] = [str(note) for note in self.notes]
        return {"kind": self.kind, "name": self.path.resolve().name, "sha256": sha256(file), **made}


def open_source(path: Path, reading: Reading | None = None, complete: bool = False) -> Source:
    """Open a RUN directory, a BUNDLE directory or a .nir file.

    `reading` says what a graph of another tool leaves open; it must not contradict SOURCE. With
    `complete` nothing may be left open: the command has no options for it.
    Raises: InputError if it is none of them; BundleError, GraphError, WeightsError, RecipeError.
    """
    kind = source_kind(path)
    bundle = open_bundle(path) if kind == "bundle" else None
    adopted = adopt(_graph(path, kind, bundle), reading)
    if complete and kind == "nir" and adopted.problems:
        raise GraphError(
            f"{path}: does not say all that is needed, and this command has no options for it; "
            f"stars-deploy check {path} says what is missing; with that, stars-deploy export "
            "writes a bundle that this command takes"
        )
    refuse(adopted.problems, str(path))
    require_runnable(adopted.graph, str(path))
    return Source(path, kind, canonical(adopted.graph), bundle, adopted.notes)


def load_any_graph(path: Path, reading: Reading | None = None) -> Adopted:
    """Return the graph of SOURCE as far as it is understood, also a bad one, for `check`."""
    kind = source_kind(path)
    return adopt(_graph(path, kind, open_bundle(path) if kind == "bundle" else None), reading)


def _graph(path: Path, kind: str, bundle: Bundle | None) -> nir.NIRGraph:
    if kind == "run":
        return _student_graph(path)
    return load_graph(path if bundle is None else bundle.file("graph.nir"))


def source_kind(path: Path) -> Literal["run", "bundle", "nir"]:
    """Say what `path` is, by what lies there; InputError if it is none of the three."""
    if (path / MANIFEST).is_file():
        return "bundle"
    if (path / STUDENT).is_file() and (path / "recipe.toml").is_file():
        return "run"
    if path.is_dir():
        raise InputError(
            f"{path}: neither a finished run (recipe.toml, {STUDENT}) nor a bundle ({MANIFEST})"
        )
    if not path.exists():
        raise InputError(f"{path}: no such run, bundle or .nir file")
    return "nir"


def _how_it_was_made(run: Path) -> dict[str, Any]:
    """Return what summary.json of a run says about recipe, method and teacher."""
    if not (run / "summary.json").is_file():
        return {}
    summary = read_json(run / "summary.json")
    if not isinstance(summary, dict) or not isinstance(summary.get("teacher", {}), dict):
        raise InputError(f"{run / 'summary.json'}: not the summary of a run; distil it again")
    known = {"recipe": summary.get("name"), "method": summary.get("method")}
    known["teacher_sha256"] = summary.get("teacher", {}).get("sha256")
    return {key: value for key, value in known.items() if value is not None}


def _student_graph(run: Path) -> nir.NIRGraph:
    from stars_deploy.config.recipe import load_recipe
    from stars_deploy.networks.to_nir import student_to_nir
    from stars_deploy.networks.weights import load_student

    recipe = load_recipe(run / "recipe.toml")
    return canonical(student_to_nir(load_student(recipe, run / STUDENT), recipe))
