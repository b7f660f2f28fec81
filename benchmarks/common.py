"""What every benchmark records: versions, hardware, and where its JSON result goes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stars_deploy.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("stars-deploy", "torch", "norse", "nir", "onnx", "onnxruntime", "numpy")


def environment(threads: int) -> dict[str, Any]:
    """Versions and hardware, without names or paths of the machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, greatest and all of the measured values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def mean_and_sd(name: str, values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and all of the values, under keys that start with `name`."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": statistics.mean(values), f"{name}_sd": sd, f"{name}_values": values}


def save(name: str, result: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json and say where it is."""
    path = RESULTS / f"{name}.json"
    write_json(path, result)
    print(f"{path.relative_to(Path(__file__).parent.parent)} written")
