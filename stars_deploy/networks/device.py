"""Which device a command runs on."""

from __future__ import annotations

import torch

from stars_deploy.errors import InputError


def resolve(device: str) -> torch.device:
    """Return the torch device for auto, cpu or cuda; auto is cuda where there is one.

    Raises:
        InputError: another name, or cuda on a machine without it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda': this machine has no usable CUDA GPU; use --device cpu")
    return torch.device(device)
