"""Weights on disk: safetensors files, checked against the network before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stars_deploy.config.recipe import Recipe
from stars_deploy.errors import WeightsError
from stars_deploy.files import sha256, write_bytes
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_student, build_teacher
from stars_deploy.networks.state_dicts import compare


def weights_bytes(network: nn.Module) -> bytes:
    """Return the parameters and buffers of `network` as a safetensors file."""
    tensors = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in network.state_dict().items()
    }
    content: bytes = safetensors.torch.save(tensors)
    return content


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of `network` as safetensors, atomically."""
    write_bytes(path, weights_bytes(network))


def load_teacher(
    recipe: Recipe, weights: Path | None = None, origin: Path | None = None
) -> Network:
    """Return the recipe's teacher on the CPU, in eval mode.

    Args:
        recipe: names the family and, unless `weights` is given, the weights.
        weights: a safetensors file to use instead of the recipe's own.
        origin: the recipe file; `teacher.weights` is relative to its folder.

    Raises:
        WeightsError: no weights, a missing, truncated or tampered file, NaN, another architecture,
            or no BatchNorm, whose statistics the synthesis of images needs.
        RecipeError: unknown family or arguments.
    """
    path = weights if weights is not None else _own_weights(recipe, origin)
    tensors = _read(path)
    if weights is None and recipe.teacher.sha256 not in (None, sha256(path)):
        raise WeightsError(
            f"{path}: sha256 is {sha256(path)}, the recipe expects {recipe.teacher.sha256}; "
            "the file is damaged, or was replaced: give other weights with --weights"
        )
    teacher = build_teacher(recipe)
    _require_batch_norm(teacher, tensors, path)
    return _load(teacher, tensors, path)


def load_student(recipe: Recipe, path: Path) -> Network:
    """Return the recipe's spiking student with the weights at `path`, on the CPU, in eval mode.

    Raises:
        WeightsError: a missing or truncated file, NaN, or another architecture.
        RecipeError: unknown family, arguments or surrogate.
    """
    return _load(build_student(recipe), _read(path), path)


def _own_weights(recipe: Recipe, origin: Path | None) -> Path:
    if recipe.teacher.weights is None:
        raise WeightsError(
            f"recipe {recipe.name!r} names no teacher.weights; give --weights FILE, or train a "
            "teacher with: stars-deploy teacher train"
        )
    path = Path(recipe.teacher.weights)
    return path if origin is None else origin.parent / path


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({problem})") from None
    return tensors


def _require_batch_norm(teacher: Network, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = [name for name in teacher.state_dict() if name.endswith("running_mean")]
    if expected and not any(name.endswith("running_mean") for name in tensors):
        raise WeightsError(
            f"{path}: holds no BatchNorm statistics (such as {expected[0]}); images are "
            "synthesised by matching them, so the teacher must be a network with BatchNorm"
        )


def _load(network: Network, tensors: Mapping[str, Tensor], path: Path) -> Network:
    expected = network.state_dict()
    compare(expected, tensors, path, "the recipe's network")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: tensor {name} holds NaN or infinite values")
    network.load_state_dict(dict(tensors))
    return network.eval()
