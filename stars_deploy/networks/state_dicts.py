"""State dicts that people have: safetensors, or torch.save's files, read without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stars_deploy.errors import WeightsError

PICKLED = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
#: Keys under which training scripts keep the state dict, tried in this order.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "teacher",
    "weights",
    "params",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
MORE_DEPTH = 4
MORE_BYTES = 8  # times the file's size, of tensors that share their storage


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the float32 tensors of a weights file by name.

    Files of torch.save are read with weights_only=True: nothing in them is executed. Wrappers
    (`state_dict`, `model`, ...) are opened, prefixes of all names (`module.` of DataParallel,
    `_orig_mod.` of torch.compile) taken off.

    Raises:
        WeightsError: no such file, damaged, other than a state dict, or NaN in it.
    """
    if not path.is_file():
        what = (
            "is a folder, expected one file of weights" if path.is_dir() else "no such weights file"
        )
        raise WeightsError(f"{path}: {what}")
    content = _pickled(path) if path.suffix.lower() in PICKLED else _safetensors(path)
    tensors = _tensors(_unwrapped(content, path), path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: tensor {name} holds NaN or infinite values")
    return tensors


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights into `module`; BatchNorm's counters of batches may be missing.

    Raises:
        WeightsError: names or shapes differ, and taking off a prefix does not help.
    """
    expected = module.state_dict()
    found = dict(tensors)
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        if len(expected.keys() & bare.keys()) > len(expected.keys() & found.keys()):
            found = bare
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    found |= {name: expected[name] for name in counters - found.keys()}
    lazy = {name for name, tensor in expected.items() if is_lazy(tensor)}  # of no shape yet
    expected |= {name: found[name] for name in lazy & found.keys()}
    compare(expected, found, path, "the teacher")
    for name, tensor in expected.items():
        if tensor.is_floating_point() != found[name].is_floating_point():
            raise WeightsError(
                f"{path}: tensor {name} is {_kind(found[name])}, the teacher has {_kind(tensor)}; "
                "quantised weights cannot be used, save the network before that"
            )
    module.load_state_dict(found)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def compare(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, whose: str
) -> None:
    """Raise WeightsError naming the first tensor of another shape, and missing or extra names."""
    problems = []
    for name, tensor in expected.items():
        if name in found and found[name].shape != tensor.shape:
            problems.append(
                f"tensor {name} has shape {list(found[name].shape)}, "
                f"{whose} has {list(tensor.shape)}"
            )
            break
    for what, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(names[:3])}{more}")
    if problems:
        raise WeightsError(f"{path}: weights of another architecture: {'; '.join(problems)}")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        raise WeightsError(
            f"{path}: truncated, or not a safetensors file ({problem}); files of torch.save end "
            f"in one of {', '.join(PICKLED)}"
        ) from None
    return tensors


def _pickled(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            _require_plain_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds more than tensors, and nothing in it is executed; save the "
            "weights alone: torch.save(model.state_dict(), FILE), or as safetensors"
        ) from None
    except Exception as problem:  # torch raises whatever its parsers raise on a damaged file
        text = str(problem).strip().splitlines() or [type(problem).__name__]
        raise WeightsError(
            f"{path}: truncated, or no file of torch.save ({text[0][:160]})"
        ) from None


def _require_plain_archive(path: Path) -> None:
    """Refuse programs, and archives that unpack to more than they are."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(e.filename.endswith("/constants.pkl") or "/code/" in e.filename for e in entries):
        raise WeightsError(
            f"{path}: a TorchScript program, whose code would have to run; save its weights with "
            "torch.save(model.state_dict(), FILE)"
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError(
            f"{path}: holds compressed entries, which torch.save does not write; save the weights "
            "again with torch.save(model.state_dict(), FILE)"
        )


def _unwrapped(content: Any, path: Path) -> Mapping[str, Any]:
    for _ in range(MORE_DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise WeightsError(
        f"{path}: holds a {type(content).__name__}, expected a state dict, by itself or under one "
        f"of the keys {', '.join(WRAPPERS)}"
    )


def _require_what_is_there(content: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that cannot be weights, or that would be far larger than the file."""
    for name, tensor in content.items():
        odd = tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized
        if odd or tensor.device.type != "cpu":
            kind = "quantised" if tensor.is_quantized else f"{_kind(tensor)}, {tensor.layout}"
            raise WeightsError(
                f"{path}: tensor {name} is {kind} on {tensor.device}; expected plain numbers, "
                "as in the state dict of a network in float32"
            )
    size = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if size > MORE_BYTES * path.stat().st_size:  # one storage that is read over and over
        raise WeightsError(
            f"{path}: its tensors claim {size} bytes, in a file of {path.stat().st_size}; save the "
            "weights again"
        )


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        keys = ", ".join(map(repr, other[:5])) or "nothing"
        raise WeightsError(
            f"{path}: no state dict: {keys} beside or instead of tensors; expected names of "
            f"tensors, by themselves or under one of the keys {', '.join(WRAPPERS)}"
        )
    _require_what_is_there(content, path)
    found = {
        str(name): tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in content.items()
    }
    for prefix in PREFIXES[:2]:
        while found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
