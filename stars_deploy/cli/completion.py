"""What a shell completes: names of packaged things, engines, targets and other choices.

The lists stand here because the modules that own them load numpy, which would be felt at every
<Tab>; tests/test_cli_completion.py compares them with what those modules take.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable

from stars_deploy.assets import asset

Completer = Callable[[str], list[str]]


def one_of(*names: str) -> Completer:
    """Return what completes one of `names`."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def profile(incomplete: str) -> list[str]:
    """Complete the name of a packaged hardware profile."""
    names = sorted(path.stem for path in asset("hardware_profiles").glob("*.toml"))
    return one_of(*names)(incomplete)


def recipe(incomplete: str) -> list[str]:
    """Complete the name of a packaged model."""
    names = sorted(path.parent.name for path in asset("models").glob("*/recipe.toml"))
    return one_of(*names)(incomplete)


#: By parameter, or by command and parameter where commands differ.
COMPLETERS: dict[str, Completer] = {
    "profile": profile,
    "recipe": recipe,
    "simulate engine": one_of("float", "integer", "onnx", "onnx-int8", "lava"),
    "validate engine": one_of(
        "float", "integer", "onnx", "onnx-int8", "lava", "hardware", "recorded"
    ),
    "sweep engine": one_of("float", "integer"),
    "target": one_of("nir", "onnx", "loihi"),
    "device": one_of("auto", "cpu", "cuda"),
    "balance": one_of("relay", "delay"),
    "nir_gain": one_of("raw", "folded"),
    "onnx_weights": one_of("float32", "int8"),
    "pooling": one_of("window", "stride"),
    "gain": one_of("raw", "discrete"),
    "golden_images": one_of("auto", "evaluation", "synthetic", "random"),
    "method": one_of("deepinversion", "cmi", "nayer"),
    "over": one_of("T", "bits", "both"),
    "data": one_of("evaluation", "fashion-mnist", "cifar10", "cifar100"),
}


def attach(function: Callable[..., object]) -> None:
    """Give the parameters of a command what completes them."""
    original = inspect.unwrap(function)
    hints = typing.get_type_hints(original, include_extras=True)
    for name, hint in hints.items():
        found = COMPLETERS.get(f"{original.__name__} {name}") or COMPLETERS.get(name)
        for information in getattr(hint, "__metadata__", ()):
            if found is not None:
                information.autocompletion = found
    original.__annotations__ = hints  # as text they would be made anew whenever they are looked at
