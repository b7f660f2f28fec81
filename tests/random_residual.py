"""Random residual NIR graphs for property tests: DAGs whose populations do fire.

`random_residual_graph(seed)` is deterministic. Its blocks are those of residual spiking networks
(post-activation with identity, projection or padded shortcuts; spiking shortcuts and SEW adds;
membrane shortcuts; long skips), with the operators around them that files hold: pools on either
path, grouped and depthwise kernels written expanded, per-channel scales, LIF, IF and Threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from random_networks import ALIVE, Shape, full, image_shape, lif, random_images
from residual_builder import Dag

from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata
from stars_deploy.simulation.reference import FloatEngine

TAUS = (1.0, 4 / 3, 1.5, 2.0, 2.7, 4.0)
READOUTS = ("affine", "li", "spikes")
NEURONS = ("lif", "lif", "lif", "if", "threshold")
CHANNELS = (2, 3, 4, 6, 8)


@dataclass
class _Growth:
    """A graph under construction and what its next block may join on to."""

    dag: Dag
    rng: np.random.Generator
    inexact: bool
    taus: tuple[float, ...]
    kinds: tuple[str, ...]
    stream: list[str] = field(default_factory=list)  # nodes whose sum the next operator takes
    earlier: list[list[str]] = field(default_factory=list)  # streams before that, oldest first

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def move(self, stream: Sequence[str]) -> None:
        """Make `stream` what the next operator takes."""
        if self.stream:
            self.earlier.append(self.stream)
        self.stream = list(stream)

    @property
    def shape(self) -> Shape:
        return self.dag.shape(self.stream[0])


def random_residual_graph(
    seed: int,
    blocks: Sequence[str] | None = None,
    populations: int | None = None,
    readouts: Sequence[str] = READOUTS,
    neurons: Sequence[str] = NEURONS,
    taus: tuple[float, ...] = TAUS,
    steps: tuple[int, int] = (1, 8),
    inexact: bool = False,
    image_skips: bool = True,
) -> nir.NIRGraph:
    """Return a random residual graph, image in, logits out, that fires on random images.

    Args:
        blocks: kinds of blocks to choose from, names of BLOCKS; the first one is seed's turn.
        populations: spiking layers before the read-out, at least 2; some blocks add two.
        readouts: affine, li (leaky integrator behind it) or spikes (LIF or IF behind it).
        steps: smallest and largest T.
        inexact: also pools that a padded convolution behind them cannot absorb exactly.
        image_skips: later layers may listen to the image's own convolution, too.
    """
    rng = np.random.default_rng([seed, 20])
    shape = (int(rng.integers(1, 4)), *(int(rng.integers(5, 11)),) * 2)
    metadata = GraphMetadata(
        T=int(rng.integers(steps[0], steps[1] + 1)),
        mean=tuple(map(float, rng.uniform(0.3, 0.6, shape[0]))),
        std=tuple(map(float, rng.uniform(0.2, 0.4, shape[0]))),
        tool_version="test",
    )
    growth = _Growth(Dag(seed, shape, metadata), rng, inexact, taus, tuple(neurons))
    growth.stream = ["input"]
    convolution = _convolution(growth, growth.stream, _channels(growth), growth.chance(0.3))
    growth.stream = [_population(growth, [convolution], convolution)]
    kinds = list(blocks or BLOCKS)
    wanted = populations or int(rng.integers(2, 7))
    turn: str | None = kinds[seed % len(kinds)]
    while _spiking(growth.dag) < wanted:
        kind, turn = turn or growth.pick(kinds), None
        if kind == "membrane" and not image_skips and _listens_to_image(growth):
            kind = "plain"
        BLOCKS[kind](growth)
    return growth.dag.graph(_readout(growth, growth.pick(readouts)))


def rates(graph: nir.NIRGraph, count: int = 16) -> dict[str, float]:
    """Spikes per neuron and step of every population on images the graph was not tuned on."""
    images = random_images(count, image_shape(graph), 4711)
    return {name: float(s.mean()) for name, s in FloatEngine(graph).run(images).spikes.items()}


def fires(graph: nir.NIRGraph) -> bool:
    """Whether all populations fire at a rate inside ALIVE."""
    return all(ALIVE[0] <= rate <= ALIVE[1] for rate in rates(graph).values())


def _spiking(dag: Dag) -> int:
    return sum(isinstance(node, nir.LIF | nir.IF | nir.Threshold) for node in dag.nodes.values())


def _listens_to_image(growth: _Growth) -> bool:
    """Whether the current of the newest population comes from the image."""
    return any("input" in _roots(growth.dag, name) for name in _currents(growth))


def _currents(growth: _Growth) -> list[str]:
    return growth.dag.feeding[growth.stream[0]]


def _roots(dag: Dag, name: str) -> set[str]:
    """The populations, or the input, that a linear node listens to."""
    if isinstance(dag.nodes[name], nir.LIF | nir.IF | nir.Threshold | nir.Input):
        return {name}
    return set().union(*(_roots(dag, source) for source in dag.feeding[name]))


# Operators.


def _channels(growth: _Growth) -> int:
    return int(growth.pick(CHANNELS))


def _kernel(growth: _Growth, inputs: int, outputs: int, size: int, groups: int = 1) -> np.ndarray:
    deviation = (inputs // groups * size**2) ** -0.5
    weight = growth.rng.normal(0, deviation, (outputs, inputs // groups, size, size))
    return expand_kernel(weight, groups)


def _conv(
    growth: _Growth,
    feeding: Sequence[str],
    weight: np.ndarray,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
) -> str:
    offsets = growth.rng.normal(0.05, 0.15, len(weight)) if bias else np.zeros(len(weight))
    node = nir.Conv2d(
        input_shape=growth.dag.shape(feeding[0])[1:],
        weight=weight.astype(np.float32),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(1, 1),
        groups=1,
        bias=offsets.astype(np.float32),
    )
    return growth.dag.add("conv", node, feeding)


def _convolution(
    growth: _Growth,
    feeding: Sequence[str],
    outputs: int,
    shrink: bool,
    sizes: Sequence[int] = (1, 3, 3),
) -> str:
    """A convolution of `feeding`, sometimes grouped or depthwise; keeps the map unless `shrink`."""
    inputs, height, _ = growth.dag.shape(feeding[0])
    size = growth.pick(sizes)
    common = [g for g in range(2, inputs + 1) if inputs % g == 0 and outputs % g == 0]
    groups = growth.pick(common) if common and growth.chance(0.35) else 1
    stride = 2 if shrink and height > 2 else 1
    weight = _kernel(growth, inputs, outputs, size, groups)
    return _conv(growth, feeding, weight, stride, size // 2)


def _pool(growth: _Growth, feeding: Sequence[str], size: int, stride: int, padding: int = 0) -> str:
    kind = nir.AvgPool2d if growth.chance(0.7) else nir.SumPool2d
    node = kind(*(np.array([value, value]) for value in (size, stride, padding)))
    return growth.dag.add("pool", node, feeding)


def _scale(growth: _Growth, feeding: Sequence[str]) -> str:
    """One factor per channel, some of them negative, written in full shape as NIR wants it."""
    shape = growth.dag.shape(feeding[0])
    factors = growth.rng.uniform(0.4, 1.4, shape[0]) * growth.rng.choice([1, 1, 1, -1], shape[0])
    values = np.broadcast_to(factors.reshape(-1, 1, 1), shape).copy()
    return growth.dag.add("scale", nir.Scale(values), feeding)


def _path(
    growth: _Growth, feeding: Sequence[str], outputs: int, shrink: bool
) -> tuple[list[str], str]:
    """Operators from `feeding` to a current; returns its node and the one to be tuned."""
    sizes: tuple[int, ...] = (1, 3, 3)
    feeding = list(feeding)
    if growth.chance(0.15):
        feeding = [_scale(growth, feeding)]
    height = growth.dag.shape(feeding[0])[1]
    if shrink and height >= 4 and growth.chance(0.9 if growth.inexact else 0.45):
        if growth.inexact and (height % 2 == 0 or growth.chance(0.3)):
            feeding, sizes = [_pool(growth, feeding, 3, 2, 1)], (3,)
        else:
            feeding = [_pool(growth, feeding, 2, 2)]
            sizes = (3,) if growth.inexact else sizes if height % 2 == 0 else (1,)
        shrink = False
    if growth.chance(0.12):  # pointwise, then as usual: a bias before a padded border
        weight = _kernel(growth, growth.dag.shape(feeding[0])[0], _channels(growth), 1)
        feeding = [_conv(growth, feeding, weight)]
    after = shrink and height % 2 == 0 and height >= 4 and growth.chance(0.3)
    tuned = _convolution(growth, feeding, outputs, shrink and not after, sizes)
    feeding = [tuned]
    if growth.chance(0.15):
        feeding = [_scale(growth, feeding)]
    return ([_pool(growth, feeding, 2, 2)] if after else feeding), tuned


def _population(growth: _Growth, feeding: Sequence[str], tuned: str | None, kind: str = "") -> str:
    shape = growth.dag.shape(feeding[0])
    kind = kind or growth.pick(growth.kinds)
    threshold = float(growth.rng.uniform(0.5, 1.5))
    tau = float(growth.pick(growth.taus))
    node = {
        "lif": lambda: lif(shape, tau, threshold, r=growth.pick((1.0, 1.0, tau))),
        "if": lambda: nir.IF(full(1.0, shape), full(threshold, shape), full(0.0, shape)),
        "threshold": lambda: nir.Threshold(full(threshold, shape)),
    }[kind]()
    rate = float(growth.rng.uniform(0.12, 0.35))
    return growth.dag.neurons(kind, node, feeding, tuned, rate)


def _shortcut(growth: _Growth, feeding: Sequence[str], shape: Shape) -> list[str]:
    """Nodes whose sum brings `feeding` to `shape`: itself, projected, padded, pooled or scaled.

    Empty where the maps do not fit each other.
    """
    given = growth.dag.shape(feeding[0])
    strides = [s for s in (1, 2, 3, 4) if (given[1] - 1) // s + 1 == shape[1]]
    if not strides:
        return []
    feeding, stride = list(feeding), strides[0]
    if stride > 1 and given[1] == stride * shape[1] and growth.chance(0.5):
        feeding, stride = [_pool(growth, feeding, stride, stride)], 1
    if given[0] == shape[0] and stride == 1 and growth.chance(0.7):
        return [_scale(growth, feeding)] if growth.chance(0.2) else feeding
    weight = _kernel(growth, given[0], shape[0], 1)
    padded = shape[0] >= given[0] and growth.chance(0.5)
    if padded:  # option A: channels are copied, the others stay silent
        weight = np.eye(shape[0], given[0], -((shape[0] - given[0]) // 2))[..., None, None]
    return [_conv(growth, feeding, weight, stride, bias=not padded)]


# Blocks: each adds one or two populations and moves the stream.


def _target(growth: _Growth) -> tuple[int, bool]:
    """Channels of a block, and whether its map shrinks; most keep both."""
    if growth.shape[1] < 3 or growth.chance(0.1 if growth.inexact else 0.6):
        return growth.shape[0], False
    return _channels(growth), growth.chance(0.6)


def _plain(growth: _Growth) -> None:
    current, tuned = _path(growth, growth.stream, *_target(growth))
    growth.move([_population(growth, current, tuned)])


def _post_add(growth: _Growth) -> None:
    """a(path(a(path(x))) + shortcut(x)), or with one path only."""
    block = growth.stream
    outputs, shrink = _target(growth)
    if growth.chance(0.6):
        current, tuned = _path(growth, block, outputs, shrink)
        growth.move([_population(growth, current, tuned)])
        shrink = False
    current, tuned = _path(growth, growth.stream, outputs, shrink)
    current += _shortcut(growth, block, growth.dag.shape(current[0]))
    growth.move([_population(growth, current, tuned)])


def _long_skip(growth: _Growth) -> None:
    """A shortcut over two to four populations, where there are as many."""
    current, tuned = _path(growth, growth.stream, *_target(growth))
    if growth.earlier:
        far = growth.earlier[-min(int(growth.rng.integers(1, 4)), len(growth.earlier))]
        current += _shortcut(growth, far, growth.dag.shape(current[0]))
    growth.move([_population(growth, current, tuned)])


def _sew(growth: _Growth) -> None:
    """Spikes are added: the next operator takes the new population and the old stream."""
    current, tuned = _path(growth, growth.stream, growth.shape[0], False)
    growth.move([_population(growth, current, tuned), *growth.stream[:2]])


def _spiking_shortcut(growth: _Growth) -> None:
    """The shortcut's projection has neurons of its own, whose spikes are added."""
    current, tuned = _path(growth, growth.stream, *_target(growth))
    outputs, height, _ = growth.dag.shape(current[0])
    given = growth.shape
    main = _population(growth, current, tuned)
    strides = [s for s in (1, 2, 3, 4) if (given[1] - 1) // s + 1 == height]
    if not strides:
        growth.move([main])
        return
    weight = _kernel(growth, given[0], outputs, 1)
    projection = _conv(growth, growth.stream, weight, strides[0])
    growth.move([main, _population(growth, [projection], projection)])


def _membrane(growth: _Growth) -> None:
    """Currents are added: z + path(a(z)); z is what the newest population was driven by."""
    old = list(_currents(growth))
    current, tuned = _path(growth, growth.stream, *_target(growth))
    current += _shortcut(growth, old, growth.dag.shape(current[0]))
    growth.move([_population(growth, current, tuned)])


BLOCKS: dict[str, Callable[[_Growth], None]] = {
    "post_add": _post_add,
    "sew": _sew,
    "membrane": _membrane,
    "long_skip": _long_skip,
    "spiking_shortcut": _spiking_shortcut,
    "plain": _plain,
}


def _dense(growth: _Growth, feeding: Sequence[str], outputs: int) -> str:
    shape = growth.dag.shape(feeding[0])
    if growth.chance(0.4):
        feeding = [_pool(growth, feeding, shape[1], shape[1])]
        shape = growth.dag.shape(feeding[0])
    flat = growth.dag.add("flatten", nir.Flatten({"input": np.array(shape)}, 0, -1), feeding)
    inputs = growth.dag.shape(flat)[0]
    weight = growth.rng.normal(0, inputs**-0.5, (outputs, inputs)).astype(np.float32)
    bias = growth.rng.normal(0, 0.1, outputs).astype(np.float32)
    return growth.dag.add("fc", nir.Affine(weight, bias), [flat])


def _readout(growth: _Growth, kind: str) -> list[str]:
    """Dense layers of the last stream and sometimes of an earlier one; returns what is put out."""
    outputs = int(growth.rng.integers(3, 11))
    tuned = _dense(growth, growth.stream, outputs)
    feeding = [tuned]
    if growth.earlier and growth.chance(0.15):
        feeding.append(_dense(growth, growth.pick(growth.earlier), outputs))
    if kind == "affine":
        return feeding
    if kind == "li":
        tau = float(growth.pick(growth.taus))
        fields = (full(value, (outputs,)) for value in (tau * DT, 1.0, 0.0))
        return [growth.dag.leaky(nir.LI(*fields), feeding)]
    return [_population(growth, feeding, tuned, growth.pick(("lif", "if")))]
