"""The plain convolutional family: conv3x3-BN-activation blocks, global average pool, linear."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stars_deploy.networks.base import Junction, Network, Spiking, Wire
from stars_deploy.networks.layers import ConvBlock


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
        super().__init__(spiking)
        widths = [inputs, *channels]
        blocks = [ConvBlock(widths[i], widths[i + 1], strides[i]) for i in range(len(channels))]
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(channels[-1], classes)
        last = len(channels) - 1
        self.wire(
            [Junction((Wire(block, (index - 1,)),)) for index, block in enumerate(blocks)],
            readout=(last,),
            stage_ends=[
                i for i in range(len(channels)) if i == last or widths[i + 1] != widths[i + 2]
            ],
        )
