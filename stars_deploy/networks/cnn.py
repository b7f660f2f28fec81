"""The plain convolutional family: conv3x3-BN-activation blocks, global average pool, linear."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stars_deploy.networks.base import Network, Spiking


class ConvBlock(nn.Module):
    """Convolution 3x3 without bias, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the pre-activation [B, C, H, W]."""
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


class Cnn(Network):
    """A chain of blocks; stages end where the width changes and at the last block."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        channels: Sequence[int],
        strides: Sequence[int],
        spiking: Spiking | None = None,
    ) -> None:
        super().__init__(len(channels), spiking)
        widths = [inputs, *channels]
        self.blocks = nn.ModuleList(
            ConvBlock(widths[i], widths[i + 1], strides[i]) for i in range(len(channels))
        )
        self.fc = nn.Linear(channels[-1], classes)
        last = len(channels) - 1
        self.stage_ends = tuple(
            i for i in range(len(channels)) if i == last or channels[i] != channels[i + 1]
        )

    def trace(self, x: Tensor, record: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Return the read-out [T*B, K] of normalised images [B, C, H, W], filling `record`."""
        for index, block in enumerate(self.blocks):
            x = self.activate(index, block(x), record)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
