"""SOURCE of a command: a run, a bundle or a .nir file, and the graph in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nir

from stars_deploy.errors import InputError
from stars_deploy.files import read_json, sha256
from stars_deploy.graph.canonical import canonical
from stars_deploy.graph.reader import load_graph, read_graph
from stars_deploy.targets.bundle import MANIFEST, Bundle, open_bundle

STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Source:
    """What SOURCE names.

    Attributes:
        path: as given.
        graph: the runnable graph in it.
        bundle: the opened bundle, if it is one.
    """

    path: Path
    kind: Literal["run", "bundle", "nir"]
    graph: nir.NIRGraph
    bundle: Bundle | None = None

    def provenance(self) -> dict[str, Any]:
        """Return what a manifest says about the source: kind, name and SHA-256, no machine path."""
        if self.bundle is not None:
            return dict(self.bundle.manifest["source"])
        file = self.path / STUDENT if self.kind == "run" else self.path
        made = _how_it_was_made(self.path) if self.kind == "run" else {}
        return {"kind": self.kind, "name": self.path.resolve().name, "sha256": sha256(file), **made}


def open_source(path: Path) -> Source:
    """Open a RUN directory, a BUNDLE directory or a .nir file.

    Raises: InputError if it is none of them; BundleError, GraphError, WeightsError, RecipeError.
    """
    kind = source_kind(path)
    if kind == "bundle":
        bundle = open_bundle(path)
        return Source(path, kind, read_graph(bundle.file("graph.nir")), bundle)
    if kind == "run":
        return Source(path, kind, _student_graph(path))
    return Source(path, kind, read_graph(path))


def load_any_graph(path: Path) -> nir.NIRGraph:
    """Return the graph of SOURCE as it is, also one that cannot be run, for `check`."""
    kind = source_kind(path)
    if kind == "bundle":
        return load_graph(open_bundle(path).file("graph.nir"))
    return _student_graph(path) if kind == "run" else load_graph(path)


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
