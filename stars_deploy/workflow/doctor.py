"""`doctor`: what this machine can run, without anything private; `--fix` builds the Lava part."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from stars_deploy import __version__
from stars_deploy.assets import asset
from stars_deploy.console import Progress, no_progress
from stars_deploy.simulation.lava.environment import (
    REMEDY,
    EnvironmentStatus,
    build_environment,
    environment_status,
    other_environments,
)
from stars_deploy.simulation.lava.probe import probe
from stars_deploy.workflow.private import public

_PACKAGES = ("torch", "torchvision", "norse", "nir", "onnx", "onnxruntime", "numpy", "h5py", "uv")
_TO_VERIFY = "running three neurons in Lava"


def doctor(fix: bool = False, progress: Progress = no_progress) -> dict[str, Any]:
    """Describe this machine; with `fix`, build the Lava environment and let it compute first.

    Raises EngineError when the environment cannot be built or computes something wrong.
    """
    verified = "not tried (--fix does)"
    if fix:
        build_environment(progress)
        progress(_TO_VERIFY, 0, 1)
        probe()
        progress(_TO_VERIFY, 1, 1)
        verified = "three neurons computed as by hand"
    report: dict[str, Any] = {
        "stars-deploy": __version__,
        "python": platform.python_version(),
        "system": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": _cuda(),
        "lava": _lava(environment_status(), verified),
        "profiles": sorted(path.stem for path in asset("hardware_profiles").glob("*.toml")),
        "models": sorted(path.parent.name for path in asset("models").glob("*/recipe.toml")),
    }
    return dict(public(report))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    try:
        import torch
    except (ImportError, OSError) as problem:
        return f"unknown: torch cannot be imported ({problem})"
    if not torch.cuda.is_available():
        return "no"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"yes: {', '.join(names)}"


def _lava(status: EnvironmentStatus, verified: str) -> dict[str, Any]:
    report: dict[str, Any] = {"state": status.reason, "directory": str(status.directory)}
    if status.ready:
        report |= {"versions": dict(status.versions), "verified": verified}
    else:
        report["state"] = f"{status.reason}: {REMEDY}"
    others = [str(path) for path in other_environments()]
    if others:
        report["of other versions, may be deleted"] = others
    return report
