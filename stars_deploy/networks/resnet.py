"""Residual networks for small images, ANN and spiking, in three residual styles.

    post_add  activation after the sum: a(conv(a(conv(x))) + x)           He et al. (2016)
    sew       activations are added: a(conv(a(conv(x)))) + x              Fang et al. (2021), ADD
    ms        pre-activations are added: z + conv(a(conv(a(z))))          Hu et al. (2021)

All styles have the same layers and parameter names, so that a teacher's weights fit each. A
projection shortcut is a 1x1 convolution with batch normalisation; in style sew an activation
follows it, and in style ms it reads the block's first activation, so that spikes are all that
travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from stars_deploy.errors import RecipeError
from stars_deploy.networks.base import IMAGE, Junction, Network, Spiking, Wire
from stars_deploy.networks.layers import ConvBlock, PadShortcut, PooledLinear

Shortcut = Literal["projection", "pad"]
Style = Literal["post_add", "sew", "ms"]


class BasicBlock(nn.Module):
    """The layers of one residual block; how they are wired is the network's business."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = ConvBlock(inputs, outputs, stride)
        self.conv2 = ConvBlock(outputs, outputs, 1)
        self.shortcut: nn.Module | None = None
        if (inputs, stride) != (outputs, 1):
            self.shortcut = (
                ConvBlock(inputs, outputs, stride, kernel=1)
                if shortcut == "projection"
                else PadShortcut(inputs, outputs, stride)
            )


class ResNet(Network):
    """A stem, stages of basic blocks, global average pool, linear layer.

    Stage s has `blocks[s]` blocks of `widths[s]` channels; the first one of every stage but the
    first has stride 2. hidden: width of one more linear layer, with an activation, before `fc`.

    Raises:
        RecipeError: style sew with pad shortcuts, whose output are not spikes of a neuron.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        shortcut: Shortcut = "projection",
        style: Style = "post_add",
        hidden: int | None = None,
        spiking: Spiking | None = None,
    ) -> None:
        super().__init__(spiking)
        self.stem = ConvBlock(inputs, stem, 1)
        stages: list[list[BasicBlock]] = []
        width = stem
        for stage, (outputs, depth) in enumerate(zip(widths, blocks, strict=True)):
            members: list[BasicBlock] = []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                members.append(BasicBlock(width, outputs, stride, shortcut))
                width = outputs
            stages.append(members)
        self.stages = nn.ModuleList(nn.ModuleList(members) for members in stages)
        junctions, readout, ends = _WIRINGS[style](self.stem, stages)
        self.hidden: PooledLinear | None = None
        if hidden is not None:
            self.hidden = PooledLinear(width, hidden)
            junctions.append(Junction((Wire(self.hidden, readout),)))
            readout, width = (len(junctions) - 1,), hidden
        self.fc = nn.Linear(width, classes)
        self.wire(junctions, readout, ends)


Wiring = tuple[list[Junction], tuple[int, ...], list[int]]  # junctions, read-out, stage ends


def _post_add(stem: nn.Module, stages: Sequence[Sequence[BasicBlock]]) -> Wiring:
    junctions, ends = [Junction((Wire(stem, (IMAGE,)),))], []
    for stage in stages:
        for block in stage:
            x = len(junctions) - 1
            junctions.append(Junction((Wire(block.conv1, (x,)),)))
            junctions.append(Junction((Wire(block.conv2, (x + 1,)), Wire(block.shortcut, (x,)))))
        ends.append(len(junctions) - 1)
    return junctions, (len(junctions) - 1,), ends


def _sew(stem: nn.Module, stages: Sequence[Sequence[BasicBlock]]) -> Wiring:
    junctions, ends = [Junction((Wire(stem, (IMAGE,)),))], []
    stream: tuple[int, ...] = (0,)  # the activations whose sum is the block's input
    for stage in stages:
        for block in stage:
            if isinstance(block.shortcut, PadShortcut):
                raise RecipeError(
                    "style 'sew' adds the outputs of activations, and a 'pad' shortcut has none; "
                    "set shortcut = 'projection' or another style"
                )
            junctions.append(Junction((Wire(block.conv1, stream),)))
            inner = len(junctions) - 1
            if block.shortcut is not None:
                junctions.append(Junction((Wire(block.shortcut, stream),)))
                stream = (len(junctions) - 1,)
            junctions.append(Junction((Wire(block.conv2, (inner,)),)))
            stream = (*stream, len(junctions) - 1)
        ends.append(len(junctions) - 1)
    return junctions, stream, ends


def _ms(stem: nn.Module, stages: Sequence[Sequence[BasicBlock]]) -> Wiring:
    junctions, ends = [Junction((Wire(stem, (IMAGE,)),))], []
    for stage in stages:
        for block in stage:
            z = len(junctions) - 1
            junctions.append(Junction((Wire(block.conv1, (z,)),)))
            branch = Wire(block.conv2, (z + 1,))
            if block.shortcut is None:
                junctions.append(Junction((branch,), carry=z))
            else:
                junctions.append(Junction((branch, Wire(block.shortcut, (z,)))))
        ends.append(len(junctions) - 1)
    return junctions, (len(junctions) - 1,), ends


_WIRINGS = {"post_add": _post_add, "sew": _sew, "ms": _ms}
