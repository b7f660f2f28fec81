"""The layers that network families are wired from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Unnormalised(nn.BatchNorm2d):
    """In the place of a BatchNorm that a teacher does not have: the identity in eval mode.

    The spiking twin trains it as a BatchNorm; nothing in it is a statistic of the teacher's data.
    """

    def reset_running_stats(self) -> None:
        """Start where (x - mean) / sqrt(var + eps) is x."""
        super().reset_running_stats()
        if self.running_var is not None:
            self.running_var.fill_(1 - self.eps)


class ConvBlock(nn.Module):
    """Convolution, same padding, then batch normalisation.

    dense: the kernel covers the whole map, so that this is a linear layer on its flattened values.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, kernel: int = 3, bias: bool = False
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.assemble(conv, nn.BatchNorm2d(outputs))

    def assemble(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, dense: bool = False) -> None:
        """Take these layers, with fresh weights."""
        self.conv, self.bn, self.dense = conv, bn, dense
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the pre-activation [B, C, H, W]."""
        return self.bn(self._convolved(x))  # type: ignore[no-any-return]

    def _convolved(self, x: Tensor) -> Tensor:
        conv = self.conv
        point = conv.kernel_size == (1, 1) and conv.padding == (0, 0)
        if not point or conv.stride == (1, 1):
            return conv(x)  # type: ignore[no-any-return]
        # The same places picked first: oneDNN's backward pass of a strided 1x1 convolution in
        # channels_last writes past its memory for few channels (seen with torch 2.15).
        down, right = conv.stride
        return F.conv2d(x[:, :, ::down, ::right], conv.weight, conv.bias, groups=conv.groups)


class PadShortcut(nn.Module):
    """Option A of He et al. (2016): every `stride`-th place, new channels of zeros around the old.

    No parameters. first: the output channel that holds input channel 0; if not given, n // 2 of n
    new channels come first, as in the authors' CIFAR networks.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first: int | None = None) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.first = (outputs - inputs) // 2 if first is None else first

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, ceil(H/stride), ceil(W/stride)]."""
        picked = x[:, :, :: self.stride, :: self.stride]
        after = self.outputs - self.inputs - self.first
        return F.pad(picked, (0, 0, 0, 0, self.first, after))


class PooledLinear(nn.Module):
    """Mean over space, then a linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs] of [B, C, H, W]."""
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]
