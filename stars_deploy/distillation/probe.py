"""Records what enters some modules of a network."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn


class InputProbe:
    """A context manager around one forward pass.

    Attributes:
        inputs: what entered each module, in the order given; what holds it keeps it in memory.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self.inputs: list[Tensor] = []

    def __enter__(self) -> Self:
        self.inputs = [torch.empty(0) for _ in self._modules]
        self._handles = [
            module.register_forward_pre_hook(self._hook(i))
            for i, module in enumerate(self._modules)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int):  # type: ignore[no-untyped-def]  # torch's hook signature
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.inputs[index] = inputs[0]

        return record
