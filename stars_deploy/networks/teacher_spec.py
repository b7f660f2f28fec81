"""`--teacher`: a module from a person's own code, or from torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

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
    module = _from_file(Path(source)) if source.endswith(".py") else _from_package(source)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if not key.startswith("_")]
            raise InputError(f"--teacher {spec!r}: {source} has no {part!r}{nearest(part, known)}")
        found = getattr(found, part)
    made = found if isinstance(found, nn.Module) else _called(spec, found)
    if not isinstance(made, nn.Module):
        raise InputError(
            f"--teacher {spec!r}: gives a {type(made).__name__}, expected a torch.nn.Module"
        )
    return made


def short_name(spec: str) -> str:
    """Return `spec` without the folders of one machine."""
    source, _, name = spec.rpartition(":")
    return f"{Path(source).name if source.endswith('.py') else source}:{name}"


def class_count(tensors: dict[str, Tensor]) -> int | None:
    """Return the rows of the last matrix of a state dict: the classes of most classifiers."""
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    return len(matrices[-1]) if matrices else None


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
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--teacher: {path}: not a file of Python")
    module = importlib.util.module_from_spec(spec)
    with _own_code(str(path)), _importable(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> ModuleType:
    with _own_code(name), _importable(Path.cwd()):
        return importlib.import_module(name)


def _called(spec: str, function: Any) -> Any:
    if not callable(function):
        raise InputError(
            f"--teacher {spec!r}: is a {type(function).__name__}, expected a function that returns "
            "the network, or its class"
        )
    with _own_code(spec):
        return function()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the person's file import its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _own_code(what: str) -> Iterator[None]:
    """Say where the person's own code fails, whatever it raises."""
    try:
        yield
    except Exception as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        raise InputError(
            f"--teacher {what}: {type(problem).__name__}: {problem} (line {last.lineno} of "
            f"{Path(last.filename).name}); it must be importable, and its function callable "
            "without arguments"
        ) from problem
