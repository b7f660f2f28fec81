"""`--teacher`: a module from a person's own code, or from torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.errors import InputError, nearest

TORCHVISION = "torchvision"
FORMS = "expected package.module:function, file.py:function, or torchvision:NAME"


def build_module(spec: str, classes: int | None = None) -> nn.Module:
    """Return the module that `spec` names, with whatever weights it starts with.

    A function or class is called without arguments; a module may also be named itself. This runs
    the person's own code.

    Args:
        classes: outputs that a torchvision model is built with; None: its own number.

    Raises:
        InputError: no such file, module or name; its code fails; or it is no torch module.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise InputError(f"--teacher {spec!r}: {FORMS}")
    if source == TORCHVISION:
        return _torchvision(name, classes)
    file = Path(source) if source.endswith(".py") else None
    with own_code(spec), _importable(file.resolve().parent if file else Path.cwd()):
        found: Any = _from_file(file) if file else importlib.import_module(source)
        for part in name.split("."):
            if not hasattr(found, part):
                known = [key for key in dir(found) if not key.startswith("_")]
                raise InputError(
                    f"--teacher {spec!r}: {source} has no {part!r}{nearest(part, known)}"
                )
            found = getattr(found, part)
        return _bare(spec, found if isinstance(found, nn.Module) else _called(spec, found))


def short_name(spec: str) -> str:
    """Return `spec` without the folders of one machine."""
    source, _, name = spec.rpartition(":")
    return f"{Path(source).name if source.endswith('.py') else source}:{name}"


def class_count(tensors: dict[str, Tensor]) -> int | None:
    """Return the rows of the last matrix of a state dict, or of its last kernel if it has none.

    These are the classes of most classifiers.
    """
    for axes in (2, 4):
        weights = [tensor for tensor in tensors.values() if tensor.dim() == axes]
        if weights:
            return len(weights[-1])
    return None


def torchvision_data(name: str) -> dict[str, Any]:
    """Return shape, mean, std and classes that torchvision's own weights of a model were made for.

    Nothing is downloaded: they are in torchvision's code.
    """
    import torchvision

    entry = torchvision.models.get_model_weights(name).DEFAULT
    preset = entry.transforms()
    size = preset.crop_size[0]
    return {
        "shape": [3, size, size],
        "mean": list(preset.mean),
        "std": list(preset.std),
        "classes": list(entry.meta["categories"]),
    }


def _torchvision(name: str, classes: int | None) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"--teacher torchvision:{name} is unknown{nearest(name, known)}")
    size = {} if classes is None else {"num_classes": classes}
    # Weights that are overwritten need no drawing, which takes seconds in these two.
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **size, **quick)
    return module


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--teacher: {path}: no such file; {FORMS}")
    # A name that shadows nothing, under which dataclasses and pickle find the file's own classes.
    name = f"stars_deploy_teacher_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--teacher: {path}: not a file of Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _called(spec: str, function: Any) -> Any:
    if not callable(function):
        raise InputError(
            f"--teacher {spec!r}: is a {type(function).__name__}, expected a function that returns "
            "the network, or its class"
        )
    return function()


def _bare(spec: str, made: Any) -> nn.Module:
    """Return a network in float32 without what only training needs around it."""
    while isinstance(made, nn.Module):
        compiled = getattr(made, "_orig_mod", None)  # of torch.compile
        inner = made.module if isinstance(made, nn.DataParallel) else compiled
        if not isinstance(inner, nn.Module):
            break
        made = inner
    if isinstance(made, torch.jit.ScriptModule):
        raise InputError(
            f"--teacher {spec!r}: gives a TorchScript program, which cannot be traced; "
            "expected the torch.nn.Module that it was made from"
        )
    if not isinstance(made, nn.Module):
        raise InputError(
            f"--teacher {spec!r}: gives a {type(made).__name__}, expected a torch.nn.Module"
        )
    return made.float()


#: Modules that came with the last teacher: the next one's may have the same names.
_NEIGHBOURS: set[str] = set()


def _forget_neighbours() -> None:
    for name in _NEIGHBOURS:
        sys.modules.pop(name, None)
    _NEIGHBOURS.clear()


def _lies_in(name: str, folder: Path) -> bool:
    file = vars(sys.modules[name]).get("__file__")  # asked for otherwise, lazy modules are loaded
    return isinstance(file, str) and folder.resolve() in Path(file).resolve().parents


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the person's code import its neighbours, and leave everything else as it was."""
    path, place = list(sys.path), Path.cwd()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    gradients, threads = torch.is_grad_enabled(), torch.get_num_threads()
    _forget_neighbours()
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        _NEIGHBOURS.update(name for name in set(sys.modules) - before if _lies_in(name, folder))
        sys.path[:] = path
        os.chdir(place)
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)
        torch.set_grad_enabled(gradients)
        torch.set_num_threads(threads)


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Say where the person's own code fails, whatever it raises; what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as problem:  # also SystemExit, which would end the command
        last = traceback.extract_tb(problem.__traceback__)[-1]
        raise InputError(
            f"--teacher {what}: {type(problem).__name__}: {problem} (line {last.lineno} of "
            f"{Path(last.filename).name}); it must be importable, and its function callable "
            "without arguments"
        ) from problem
