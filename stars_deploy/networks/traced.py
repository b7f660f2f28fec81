"""The family of networks that were not written here: what was traced, as data, and built from it.

`tracing` turns a person's own module into a `TracedArgs` once. From then on the network is this
description and its weights: a recipe holds it, and nobody's code is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stars_deploy.config.recipe import Data
from stars_deploy.errors import RecipeError
from stars_deploy.networks.base import IMAGE, Junction, Network, Spiking, Wire
from stars_deploy.networks.layers import ConvBlock, PadShortcut, Unnormalised

Size = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
Count = Annotated[int, Field(ge=0, le=1 << 20, strict=True)]
Shape = tuple[int, int, int]  # C, H, W
Pooling = Literal["window", "stride"]
LARGEST = 1 << 28  # weights of one layer, or values of one map


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Layer(_Part):
    """One layer of a wire.

    conv: a convolution, then BatchNorm (norm = true) or, in the twin alone, one that the teacher
    does not have; dense: its kernel covers the whole map. average, max: pooling; the twin has
    average pooling for both. pad: every `stride`-th place, in `outputs` channels of which number
    `first` is the first that is not zero.
    """

    kind: Literal["conv", "average", "max", "pad"]
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$")  # of a conv
    inputs: Size = 1  # channels
    outputs: Size = 1
    kernel: tuple[Size, Size] = (1, 1)
    stride: tuple[Size, Size] = (1, 1)
    padding: tuple[Count, Count] = (0, 0)
    dilation: tuple[Size, Size] = (1, 1)
    groups: Size = 1
    bias: bool = False
    norm: bool = True
    eps: float = Field(default=1e-5, gt=0)
    dense: bool = False
    first: Count = 0

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the output for those of the input."""
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width


class WireArgs(_Part):
    """One summand: layers on the sum of earlier junctions' outputs; -1 is the image."""

    sources: tuple[Annotated[int, Field(ge=IMAGE, strict=True)], ...] = Field(min_length=1)
    layers: tuple[Layer, ...] = ()


class JunctionArgs(_Part):
    """A sum of wires and its activation: min(max(z, slope z), limit), or none.

    place: where the activation is in the network that was traced.
    """

    place: str
    wires: tuple[WireArgs, ...]
    carry: Count | None = None
    activation: Literal["relu", "none"] = "relu"
    slope: float = Field(default=0.0, ge=0, lt=1)  # of a leaky ReLU
    limit: float | None = Field(default=None, gt=0)  # 6 for a ReLU6


class TracedArgs(_Part):
    """Arguments of family traced: the whole wiring.

    pooling: what the spiking twin has for max pooling: the average over the same window, or over
    one of the size of the stride (no overlap, no padding).
    """

    junctions: tuple[JunctionArgs, ...] = Field(min_length=1, max_length=10_000)
    readout: tuple[Count, ...] = Field(min_length=1)
    head: tuple[Layer, ...] = ()  # pooling before the last linear layer
    stage_ends: tuple[Count, ...] = Field(min_length=1)
    pooling: Pooling = "window"


class TracedNetwork(Network):
    """A network built from a description; `blocks` holds its convolutions by name.

    Raises:
        RecipeError: the description contradicts itself or does not fit the data.
    """

    def __init__(
        self, shape: Shape, classes: int, args: TracedArgs, spiking: Spiking | None
    ) -> None:
        super().__init__(spiking)
        self.blocks = nn.ModuleDict()
        walk = _Walk(shape, args.pooling if spiking else None, self.blocks)
        junctions = [walk.junction(index, part) for index, part in enumerate(args.junctions)]
        readout = [walk.at("readout", index) for index in args.readout]
        if len(set(readout)) > 1:
            raise RecipeError(f"readout: adds maps of different shapes {readout}; make them equal")
        layers, last = walk.layers("head", args.head, readout[0])
        self.pools = nn.Sequential(*layers)
        self.fc = nn.Linear(last[0] * last[1] * last[2], classes)
        for index in args.stage_ends:
            walk.at("stage_ends", index)
        self.wire(junctions, args.readout, args.stage_ends)
        if not self.neurons:
            raise RecipeError("junctions: none has an activation, so there is nothing to spike")

    def head(self, features: Tensor) -> Tensor:
        """Return the read-out's features, pooled and flattened: [N, F] of [N, C, H, W]."""
        pooled: Tensor = self.pools(features)
        return pooled.flatten(1)


class _Walk:
    """Builds junction after junction, and follows the shapes of maps."""

    def __init__(self, shape: Shape, pooling: Pooling | None, blocks: nn.ModuleDict) -> None:
        self._shapes: dict[int, Shape] = {IMAGE: shape}
        self._pooling = pooling  # None in an ANN
        self._blocks = blocks

    def at(self, where: str, index: int) -> Shape:
        """Return the shape of an earlier junction's output."""
        if index not in self._shapes:
            raise RecipeError(f"{where}: {index} is no earlier junction; expected a lower number")
        return self._shapes[index]

    def junction(self, index: int, part: JunctionArgs) -> Junction:
        """Return junction `index`."""
        where = f"junctions.{index}"
        wires, found = [], set()
        for wire in part.wires:
            given = {self.at(where, source) for source in wire.sources}
            layers, made = self.layers(where, wire.layers, given.pop())
            found |= {made} if not given else {made, (0, 0, 0)}
            wires.append(Wire(nn.Sequential(*layers) if layers else None, wire.sources))
        if part.carry is not None:
            found.add(self.at(where, part.carry))
        if len(found) != 1:
            raise RecipeError(f"{where} ({part.place}): adds maps of different shapes, or nothing")
        self._shapes[index] = found.pop()
        return Junction(tuple(wires), part.carry, _activation(part))

    def layers(
        self, where: str, parts: Sequence[Layer], shape: Shape
    ) -> tuple[list[nn.Module], Shape]:
        """Return the layers on a map of `shape`, and the shape of what they make of it."""
        made = []
        for part in parts:
            channels = part.inputs if part.kind in ("conv", "pad") else shape[0]
            size = part.map_size(shape[1:])
            wide = part.kind in ("average", "max") and any(
                2 * p > k for p, k in zip(part.padding, part.kernel, strict=True)
            )
            if channels != shape[0] or min(size) < 1 or wide:
                raise RecipeError(f"{where}: a {part.kind} layer {part.name} cannot take {shape}")
            module, outputs = _BUILD[part.kind](self, part, shape)
            made.append(module)
            shape = (outputs, *size)
            if outputs * size[0] * size[1] > LARGEST:
                raise RecipeError(f"{where}: a map of {shape} is larger than {LARGEST} values")
        return made, shape

    def conv(self, part: Layer, shape: Shape) -> tuple[nn.Module, int]:
        """Return a convolution with its BatchNorm."""
        if part.inputs % part.groups or part.outputs % part.groups:
            raise RecipeError(f"layer {part.name}: {part.groups} groups do not divide its channels")
        weights = part.inputs // part.groups * part.outputs * part.kernel[0] * part.kernel[1]
        if not part.name or part.name in self._blocks or weights > LARGEST:
            raise RecipeError(
                f"layer {part.name!r}: expected a name of its own and {LARGEST} weights at most"
            )
        conv = nn.Conv2d(
            part.inputs,
            part.outputs,
            part.kernel,
            part.stride,
            part.padding,
            part.dilation,
            part.groups,
            part.bias,
        )
        norm = nn.BatchNorm2d(part.outputs, part.eps) if part.norm else Unnormalised(part.outputs)
        block = _Block(conv, norm, part.dense and part.map_size(shape[1:]) == (1, 1))
        self._blocks[part.name] = block
        return block, part.outputs

    def average(self, part: Layer, shape: Shape) -> tuple[nn.Module, int]:
        """Return average pooling; padding counts as zeros."""
        return nn.AvgPool2d(part.kernel, part.stride, part.padding), shape[0]

    def max(self, part: Layer, shape: Shape) -> tuple[nn.Module, int]:
        """Return max pooling, or what a spiking network has in its place."""
        if self._pooling is None:
            return nn.MaxPool2d(part.kernel, part.stride, part.padding, part.dilation), shape[0]
        small = part.model_copy(update={"kernel": part.stride, "padding": (0, 0)})
        fits = small.map_size(shape[1:]) == part.map_size(shape[1:])
        return self.average(small if self._pooling == "stride" and fits else part, shape)

    def pad(self, part: Layer, shape: Shape) -> tuple[nn.Module, int]:
        """Return a shortcut that picks places and adds channels of zeros."""
        if part.stride[0] != part.stride[1] or part.first + part.inputs > part.outputs:
            raise RecipeError(
                f"a pad layer from {part.inputs} to {part.outputs} channels, first {part.first}, "
                f"stride {part.stride}: expected room for its channels and one stride"
            )
        return PadShortcut(part.inputs, part.outputs, part.stride[0], part.first), part.outputs


_BUILD: dict[str, Callable[[_Walk, Layer, Shape], tuple[nn.Module, int]]] = {
    "conv": _Walk.conv,
    "average": _Walk.average,
    "max": _Walk.max,
    "pad": _Walk.pad,
}


class _Block(ConvBlock):
    """A convolution of any kind with the BatchNorm behind it."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, dense: bool) -> None:
        nn.Module.__init__(self)
        self.assemble(conv, bn, dense)


def _activation(part: JunctionArgs) -> Callable[[], nn.Module] | None:
    if part.activation == "none":
        return None
    if part.limit is not None:
        return partial(nn.Hardtanh, 0.0, part.limit)
    return partial(nn.LeakyReLU, part.slope) if part.slope else nn.ReLU


def build_traced(data: Data, args: Any, spiking: Spiking | None) -> TracedNetwork:
    """Return the network of family traced."""
    return TracedNetwork(data.shape, len(data.classes), args, spiking)
