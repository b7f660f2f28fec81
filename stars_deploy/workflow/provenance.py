"""What a result was made with: versions, device, threads."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

import stars_deploy


def versions() -> dict[str, str]:
    """Return the versions that a number depends on."""
    return {
        "stars_deploy": stars_deploy.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "norse", "nir")},
    }


def hardware(device: torch.device) -> dict[str, str | int]:
    """Return the class of the machine: device, processor, and the threads used on a CPU."""
    if device.type == "cuda":
        return {"device": "cuda", "processor": torch.cuda.get_device_name(device)}
    return {
        "device": device.type,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }
