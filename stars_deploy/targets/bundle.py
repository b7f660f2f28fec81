"""A bundle: one directory with all that is deployed, and a manifest that hashes every file.

`manifest.json` holds the SHA-256 of every file except itself and the files written about the
bundle later (`LATER`). A bundle is opened only if what lies there is what was exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy import __version__, files
from stars_deploy.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
#: Written by `validate` about a bundle, so outside its seal.
LATER = frozenset({"validation.json", "report.html", "card.md"})
_KEYS: dict[str, type | tuple[type, ...]] = {
    "tool_version": str,
    "source": dict,
    "profile": (str, type(None)),
    "targets": list,
    "seeds": dict,
}
SOURCES = ("evaluation", "synthetic", "random", "file")

Json = dict[str, Any]
Array = NDArray[Any]


@dataclass(frozen=True)
class Golden:
    """Images and what each engine answered when the bundle was exported (golden.npz).

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, -1 where unknown.
        source: evaluation, synthetic, random, or file (images the user gave).
        logits: per engine (float, integer) float32 `[N, K]`.
        spikes: per engine and spiking node uint8 `[T, N, ...]`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str
    logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    spikes: Mapping[str, Mapping[str, NDArray[np.uint8]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files match its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Say whether the bundle holds the file `name`."""
        return name in self.manifest["sha256"]

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle; BundleError if the bundle has none."""
        if not self.has(name):
            targets = {"model": "onnx", "loihi": "loihi"}
            target = targets.get(name.split("/")[0].split(".")[0].split("_")[0])
            target = f"{target} --onnx-weights int8" if "int8" in name else target
            remedy = f" --target {target}" if target else ""
            raise BundleError(
                f"{self.path}: has no {name}; write it with stars-deploy export{remedy}"
            )
        return self.path / name


def write_manifest(
    path: Path, source: Json, profile: str | None, targets: list[str], seeds: Json
) -> Json:
    """Hash the files under `path` and write manifest.json; return the manifest."""
    manifest = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "source": source,
        "profile": profile,
        "targets": targets,
        "seeds": seeds,
        "sha256": _hashes(path),
    }
    files.write_json(path / MANIFEST, manifest)
    return manifest


def seal(bundle: Path) -> Json:
    """Recompute the hashes in manifest.json after a deliberate change; return the manifest.

    A sealed bundle opens again, whatever is in it. That is how a fault is seeded on purpose to
    see `validate` find it; it makes no statement about the files being right.
    """
    manifest = {**_read_manifest(bundle), "sha256": _hashes(bundle)}
    files.write_json(bundle / MANIFEST, manifest)
    return manifest


def open_bundle(path: Path) -> Bundle:
    """Open a bundle after comparing every file with the manifest.

    Raises:
        BundleError: no bundle there, or a file is missing, unlisted, or has another SHA-256.
    """
    manifest = _read_manifest(path)
    expected: Mapping[str, str] = manifest["sha256"]
    present = _names(path)
    problems = [
        f"{name} is listed in the manifest but missing" for name in expected.keys() - present
    ]
    problems += [f"{name} is not listed in the manifest" for name in present - expected.keys()]
    if problems:
        raise BundleError(f"{path}: {'; '.join(sorted(problems))}; export the bundle again")
    for name in sorted(expected):
        found = files.sha256(path / name)
        if found != expected[name]:
            raise BundleError(
                f"{path / name}: sha256 is {found}, the manifest expects {expected[name]}; "
                "the file changed after export: export the bundle again"
            )
    return Bundle(path, manifest)


def is_bundle(path: Path) -> bool:
    """Say whether a directory has the manifest of a bundle; the files are not verified."""
    try:
        _read_manifest(path)
    except BundleError:
        return False
    return True


def refuse_foreign(path: Path) -> None:
    """Raise BundleError unless `path` may be replaced: absent, empty, or a bundle and no more.

    Nor may it lie in another bundle.
    """
    refuse_inside(path, "--out")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BundleError(f"{path}: exists and is not a directory; choose another --out")
    if not path.exists() or not any(path.iterdir()):
        return
    if not is_bundle(path):
        raise BundleError(
            f"{path}: exists and is not a bundle, so it is not replaced; choose another --out"
        )
    foreign = sorted(_names(path) - _read_manifest(path)["sha256"].keys())
    if foreign:
        raise BundleError(
            f"{path}: {foreign[0]} is not part of the bundle and would be lost; "
            "move it away or choose another --out"
        )


def refuse_inside(path: Path, option: str) -> None:
    """Raise BundleError if `path` is inside a bundle: a further file would break its seal."""
    for folder in path.absolute().parents:
        if is_bundle(folder):
            raise BundleError(
                f"{option} {path}: inside the bundle {folder}, which a further file would unseal; "
                "choose a place beside it"
            )


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden.npz: images, labels, images_source, E.logits, E.spikes.<node>."""
    arrays: dict[str, Array] = {
        "images": golden.images,
        "labels": golden.labels.astype(np.int64),
        "images_source": np.array(golden.source),
    }
    for engine, logits in golden.logits.items():
        arrays[f"{engine}.logits"] = logits.astype(np.float32)
    for engine, spikes in golden.spikes.items():
        arrays |= {f"{engine}.spikes.{node}": train for node, train in spikes.items()}
    _golden_from(arrays, path)  # what is written can be read
    files.write_npz(path, arrays)


def read_golden(path: Path) -> Golden:
    """Read and check golden.npz; BundleError names a missing or malformed array."""
    return _golden_from(files.read_npz(path, BundleError), path)


def _golden_from(arrays: Mapping[str, Array], path: Path) -> Golden:
    images = _require(arrays, path, "images", np.uint8, 4)
    labels = _require(arrays, path, "labels", np.int64, 1, len(images))
    source = str(arrays.get("images_source", ""))
    if source not in SOURCES:
        raise BundleError(
            f"{path}: images_source is {source!r}, expected one of {', '.join(SOURCES)}"
        )
    logits: dict[str, Array] = {}
    spikes: dict[str, dict[str, Array]] = {}
    for key in arrays:
        engine, _, rest = key.partition(".")
        if rest == "logits":
            logits[engine] = _require(arrays, path, key, np.float32, 2, len(images))
        elif rest.startswith("spikes."):
            train = _require(arrays, path, key, np.uint8)
            if train.ndim < 3 or train.shape[1] != len(images):
                raise BundleError(
                    f"{path}: {key} has shape {list(train.shape)}, expected [T, {len(images)}, ...]"
                )
            spikes.setdefault(engine, {})[rest.removeprefix("spikes.")] = train
    return Golden(images, labels, source, logits, spikes)


def _require(
    arrays: Mapping[str, Array],
    path: Path,
    key: str,
    dtype: type[np.generic],
    ndim: int | None = None,
    length: int | None = None,
) -> Array:
    if key not in arrays:
        raise BundleError(f"{path}: array {key!r} is missing")
    array = arrays[key]
    wrong_shape = ndim is not None and array.ndim != ndim
    wrong_length = length is not None and (array.ndim == 0 or len(array) != length)
    if array.dtype != dtype or wrong_shape or wrong_length:
        expected = f"{np.dtype(dtype)}" + (f" with {ndim} axes" if ndim is not None else "")
        expected += f", {length} images" if length is not None else ""
        raise BundleError(
            f"{path}: array {key!r} is {array.dtype} {list(array.shape)}, expected {expected}"
        )
    return array


def _hashes(path: Path) -> dict[str, str]:
    return {name: files.sha256(path / name) for name in sorted(_names(path))}


def _names(path: Path) -> set[str]:
    """Return the POSIX names of the files that a seal covers; links are refused."""
    names: set[str] = set()
    for entry in path.rglob("*"):
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BundleError(f"{entry}: is a link or special file; a bundle holds plain files")
        if entry.is_file() and name != MANIFEST and name not in LATER and not _leftover(name):
            names.add(name)
    return names


def _leftover(name: str) -> bool:
    """Say whether `name` is a temporary that a killed `validate` left beside its result."""
    return any(name.startswith(f".{later}.") for later in LATER | {MANIFEST})


def _read_manifest(path: Path) -> Json:
    if not path.is_dir():
        raise BundleError(f"{path}: no such directory; expected a bundle of stars-deploy export")
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: not a bundle, it has no {MANIFEST}")
    manifest: Json = files.read_json(path / MANIFEST, BundleError)
    hashes = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(hashes, dict) or not all(isinstance(x, str) for x in hashes.values()):
        raise BundleError(f"{path / MANIFEST}: not the manifest of a bundle (no sha256 table)")
    if manifest.get("schema") != SCHEMA:
        raise BundleError(
            f"{path / MANIFEST}: schema is {manifest.get('schema')!r}, expected {SCHEMA}; "
            "export the bundle again with this version"
        )
    for key, kind in _KEYS.items():
        if key not in manifest:
            raise BundleError(f"{path / MANIFEST}: key {key!r} is missing; export it again")
        if not isinstance(manifest[key], kind):
            raise BundleError(
                f"{path / MANIFEST}: key {key!r} has value {manifest[key]!r}; export it again"
            )
    texts = [manifest["source"].get(key) for key in ("kind", "name", "sha256")]
    if not all(isinstance(text, str) for text in [*texts, *manifest["targets"]]):
        raise BundleError(
            f"{path / MANIFEST}: source has no kind, name and sha256, or a target is no name; "
            "export it again"
        )
    return manifest
