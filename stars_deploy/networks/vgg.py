"""VGG with batch normalisation (Simonyan and Zisserman, 2015), in its CIFAR form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from stars_deploy.networks.base import Junction, Network, Spiking, Wire
from stars_deploy.networks.layers import ConvBlock

Pooling = Literal["max", "average"]
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions of each group


class Vgg(Network):
    """Groups of conv3x3-BN-activation blocks, each group but the last followed by pooling by 2.

    With average pooling and 32 pixels this is the classic network, whose fifth pool and flatten are
    the global average pool here; with max pooling its last pool is replaced by the mean. Pooling
    stops at a map of one pixel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        groups: Sequence[tuple[int, int]] = VGG16,
        pooling: Pooling = "max",
        spiking: Spiking | None = None,
    ) -> None:
        super().__init__(spiking)
        width, size = shape[0], min(shape[1:])
        blocks: list[ConvBlock] = []
        junctions: list[Junction] = []
        ends = []
        for channels, depth in groups:
            for position in range(depth):
                block = ConvBlock(width, channels, 1, bias=True)
                layer: nn.Module = block
                if blocks and position == 0 and size > 1:
                    layer, size = nn.Sequential(POOLS[pooling](2), block), size // 2
                junctions.append(Junction((Wire(layer, (len(blocks) - 1,)),)))
                blocks.append(block)
                width = channels
            ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(width, classes)
        self.wire(junctions, readout=ends[-1:], stage_ends=ends)
