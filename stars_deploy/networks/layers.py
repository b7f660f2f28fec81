"""The layers that network families are wired from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, same padding, then batch normalisation."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, kernel: int = 3, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias
        )
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the pre-activation [B, C, H, W]."""
        return self.bn(self._convolved(x))  # type: ignore[no-any-return]

    def _convolved(self, x: Tensor) -> Tensor:
        conv = self.conv
        step = conv.stride[0]
        if conv.kernel_size != (1, 1) or step == 1:
            return conv(x)  # type: ignore[no-any-return]
        # The same places picked first: oneDNN's backward pass of a strided 1x1 convolution in
        # channels_last writes past its memory for few channels (seen with torch 2.15).
        return F.conv2d(x[:, :, ::step, ::step], conv.weight, conv.bias)


class PadShortcut(nn.Module):
    """Option A of He et al. (2016): every `stride`-th place, new channels of zeros around the old.

    No parameters. Of n new channels, n // 2 come first, as in the authors' CIFAR networks.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.first = (outputs - inputs) // 2  # output channel that holds input channel 0

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
