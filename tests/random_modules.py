"""Random networks as people write them: modules, functions and methods, blocks of every kind.

`networks()` is a hypothesis strategy; `grow` makes one of them from any source of choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Shape = tuple[int, int, int]
Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """Steps one behind the other, of which some are modules and some are not."""

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = list(steps)
        self.parts = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        """Return the last step's result."""
        for step in self.steps:
            x = step(x)
        return x


class Sum(nn.Module):
    """A residual add in one of its spellings."""

    def __init__(self, spelling: int, main: Step, shortcut: Step) -> None:
        super().__init__()
        self.spelling, self.main, self.shortcut = spelling, main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return main(x) + shortcut(x)."""
        kept = self.shortcut(x)
        out = self.main(x)
        if self.spelling == 0:
            return kept + out
        if self.spelling == 1:
            return torch.add(out, kept)
        if self.spelling == 2:
            return out.add(kept)
        out += kept
        return out


class Cat(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches: Step) -> None:
        super().__init__()
        self.branches = list(branches)
        self.parts = nn.ModuleList(b for b in branches if isinstance(b, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenation along channels."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def same(x: Tensor) -> Tensor:
    """An identity shortcut."""
    return x


def option_a(stride: int, before: int, after: int) -> Step:
    """A shortcut of padded channels."""
    return lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))


RELUS: list[Callable[[], Step]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: F.relu,
    lambda: torch.relu,
    lambda: lambda x: x.relu(),
    lambda: lambda x: x.clamp(min=0),
]
BENDS: list[Callable[[], Step]] = [
    *RELUS,
    nn.ReLU6,
    lambda: F.relu6,
    lambda: nn.Hardtanh(0.0, 2.0),
    lambda: lambda x: torch.clamp(x, 0, 3),
    lambda: nn.LeakyReLU(0.1),
    lambda: lambda x: F.leaky_relu(x, 0.2),
]
IDLE: list[Callable[[], Step]] = [
    lambda: nn.Dropout(0.3),
    nn.Identity,
    lambda: lambda x: x.contiguous(),
    lambda: lambda x: F.dropout(x, 0.5, training=False),
]
FLAT: list[Callable[[], Step]] = [
    nn.Flatten,
    lambda: lambda x: torch.flatten(x, 1),
    lambda: lambda x: x.view(x.size(0), -1),
    lambda: lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
]
MEANS: list[Callable[[], Step]] = [
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    lambda: lambda x: x.mean((2, 3)),
    lambda: lambda x: x.mean([-1, -2], keepdim=True).flatten(1),
    lambda: lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1),
    lambda: lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
    lambda: lambda x: F.adaptive_max_pool2d(x, 1).squeeze(3).squeeze(2),
]


@dataclass
class Growth:
    """Where choices come from, and the shape of the map so far."""

    pick: Callable[[list[Any]], Any]
    shape: Shape
    linear: bool = False  # whether the map's last operator may be written to in place

    def chance(self, of: int = 2) -> bool:
        """Say yes once in `of` times."""
        return bool(self.pick([False] * (of - 1) + [True]))

    def conv(self, outputs: int | None = None, stride: int | None = None, **fixed: int) -> Step:
        """A convolution, same padding or none, of any kind; moves the shape on."""
        channels, height, width = self.shape
        outputs = outputs or self.pick([2, 3, 4, 6])
        kernel = fixed.get("kernel") or self.pick([1, 3, 3, 5])
        stride = stride or self.pick([1, 1, 2])
        dilation = self.pick([1, 1, 2]) if kernel == 3 else 1
        groups = self.pick([g for g in (1, 2, 3, channels) if not channels % g | outputs % g])
        padding: Any = dilation * (kernel // 2)
        if "kernel" not in fixed and stride == 1 and self.chance(4):
            padding = "same"
        made = nn.Conv2d(
            channels, outputs, kernel, stride, padding, dilation, groups, bias=self.chance()
        )
        self.shape = (outputs, -(-height // stride), -(-width // stride))
        return made

    def block(self, outputs: int | None = None, stride: int | None = None) -> nn.Module:
        """Convolution, BatchNorm or none, activation or none, in any order."""
        steps: list[Step] = []
        if self.chance(4):  # pre-activation
            steps += [nn.BatchNorm2d(self.shape[0]), self.pick(BENDS)()]
            if steps[-1] is BENDS[1]:
                steps[-1] = nn.ReLU()
        steps.append(self.conv(outputs, stride))
        if self.pick([True, True, True, False]):
            steps.append(nn.BatchNorm2d(self.shape[0], eps=self.pick([1e-5, 1e-3])))
        if self.pick([True, True, False]):
            steps.append(self.pick(BENDS)())
        if self.chance(6):
            steps.append(self.pick(IDLE)())
        if self.chance(8):  # behind the activation
            steps.append(nn.BatchNorm2d(self.shape[0]))
        return Chain(*steps)

    def pool(self) -> Step:
        """Pooling with or without padding."""
        channels, height, width = self.shape
        kernel = self.pick([k for k in (2, 3) if k <= min(height, width)] or [1])
        stride, padding = self.pick([1, 2]), self.pick([0, kernel // 2])
        moved = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
        self.shape = (channels, *moved)  # type: ignore[assignment]
        kind = self.pick(["max", "average", "max function", "average function"])
        if kind == "max":
            return nn.MaxPool2d(kernel, stride, padding)
        if kind == "average":
            return nn.AvgPool2d(kernel, stride, padding)
        function = F.max_pool2d if kind.startswith("max") else F.avg_pool2d
        return lambda x: function(x, kernel, stride, padding)

    def residual(self) -> Step:
        """Blocks beside a shortcut of any kind, an activation behind them or none."""
        start = self.shape
        outputs, stride = self.pick([start[0], start[0], start[0] + 2]), self.pick([1, 1, 2])
        main: list[Step] = [self.block(outputs, stride)]
        if self.chance():
            main.append(self.block(outputs, 1))
        if start == self.shape:
            shortcut = same
        elif self.chance():
            before = self.pick(list(range(outputs - start[0] + 1)))
            shortcut = option_a(stride, before, outputs - start[0] - before)
        else:
            other = Growth(self.pick, start)
            shortcut = Chain(other.conv(outputs, stride, kernel=1), nn.BatchNorm2d(outputs))
        # In place only where what is written to belongs to the block alone.
        spelling = self.pick([0, 1, 2, 3] if _owned(main[-1]) else [0, 1, 2])
        steps: list[Step] = [Sum(spelling, Chain(*main), shortcut)]
        if self.chance():
            steps.append(self.pick(RELUS)())
        return Chain(*steps)

    def concat(self) -> Step:
        """The map and a block of it, or two blocks."""
        start, total = self.shape, 0
        branches: list[Step] = []
        for _ in range(2):
            self.shape = start
            branches.append(self.block(self.pick([2, 3]), 1))
            total += self.shape[0]
        if self.chance():
            total += start[0] - self.shape[0]
            branches[-1] = same
        self.shape = (total, *start[1:])
        return Cat(*branches)

    def step(self) -> Step:
        """Any of these."""
        kinds = [self.block, self.residual, self.concat]
        kinds += [self.pool] if min(self.shape[1:]) > 1 else []
        return self.pick(kinds)()  # type: ignore[no-any-return]

    def head(self, classes: int) -> Step:
        """Flattening or a mean, one to three linear layers."""
        steps: list[Step] = [self.pick(FLAT + MEANS)()]
        count = self.shape[0] * self.shape[1] * self.shape[2]
        size = (
            count if steps[0] is None else int(Chain(*steps)(torch.zeros(2, *self.shape)).shape[1])
        )
        for _ in range(self.pick([0, 0, 1, 2])):
            steps.append(nn.Linear(size, 5, bias=self.chance()))
            size = 5
            if self.chance():
                steps.append(nn.BatchNorm1d(size))
            steps += [self.pick(BENDS)(), self.pick(IDLE)()] if self.chance() else []
        return Chain(*steps, nn.Linear(size, classes))


def _owned(block: Any) -> bool:
    last = block.steps[-1]
    return isinstance(last, nn.BatchNorm2d | nn.Conv2d)


def grow(pick: Callable[[list[Any]], Any], blocks: int = 4, classes: int = 3) -> Any:
    """Return a network and the shape of its images."""
    shape: Shape = (pick([1, 2, 3]), pick([5, 6, 8]), pick([5, 6, 8]))
    growth = Growth(pick, shape)
    # Somewhere there is a convolution, a BatchNorm and a ReLU.
    steps: list[Step] = [growth.conv(4, 1), nn.BatchNorm2d(4), pick(BENDS)()]
    if growth.chance(4):
        steps = [growth.__class__(pick, shape).conv(shape[0], 1, kernel=3), *_first(growth, shape)]
    steps += [growth.step() for _ in range(pick(list(range(1, blocks + 1))))]
    return trained(Chain(*steps, growth.head(classes)), shape), shape


def _first(growth: Growth, shape: Shape) -> list[Step]:
    """A stem whose convolutions have no activation between them."""
    growth.shape = shape
    return [growth.conv(4, 1), nn.BatchNorm2d(4), nn.ReLU()]


def trained(module: nn.Module, shape: Shape) -> nn.Module:
    """Let BatchNorms know their inputs, and differ per channel."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.1, 0.3)
            norm.momentum = None  # the average of all batches
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(16, *shape))
    return module.eval()


@st.composite
def networks(draw: Any, blocks: int = 4) -> tuple[nn.Module, Shape]:
    """A network in eval mode and the shape of its images."""
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    return grow(lambda choices: draw(st.sampled_from(choices)), blocks)  # type: ignore[no-any-return]
