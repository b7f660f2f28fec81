"""Reading `network.json` and `network.npz`: integer populations and connections, fully checked.

Nothing here is shared with the code that writes these files: the engine is to judge it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from stars_deploy.errors import BundleError
from stars_deploy.files import read_json, read_npz
from stars_deploy.simulation.integer.extremes import check_mantissas
from stars_deploy.simulation.integer.fields import Fields, Integers

INPUT = "input"
HOST_BIAS = "host_bias"
ENCODINGS = ("signed_q", "pixel_u8", HOST_BIAS)
READOUTS = ("potential", "potentials", "spikes")
WEIGHT_RANGE = (-128, 127)
HOST_WEIGHT_RANGE = (-(1 << 31), (1 << 31) - 1)
BIAS_RANGE = (-4096, 4095)
MESSAGE_LIMIT = 1 << 23  # graded messages of up to 24 bits, signed
LARGEST_RUN = 1 << 26  # neurons of one population times T: what one image takes of memory


@dataclass(frozen=True)
class Population:
    """Neurons that share `du`, `dv`, `vth`; `shape` is (C, H, W) or (N,)."""

    name: str
    node: str | None
    shape: tuple[int, ...]
    du: int
    dv: int
    vth: int
    bias: Integers | None  # B = mantissa << exponent, shape (C, 1, 1), (C, H, W) or (N,)
    bias_exp: int
    scale: float  # activation units per unit of V
    depth: int
    spiking: bool


@dataclass(frozen=True)
class Connection:
    """Weights from `source` to `target`: [O, I/groups, KH, KW] or [N_out, N_in]; (H, W) pairs.

    A synaptic delay makes up for connections that the other paths into the target have more of:
    each sample's steps meet as if nothing had been delayed, so it is checked and not computed.

    With a `shift`, the host computes the sums S of the image and adds (S + 2^shift / 2) >> shift to
    the bias mantissa of the target, in the steps that belong to this image: no path is early.
    """

    name: str
    source: str
    target: str
    kind: Literal["conv", "dense"]  # what the weights are; sparse_delay holds either
    weight: Integers
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    graded: bool
    shift: int | None  # of the sums on the host, which are no activation but a bias


@dataclass(frozen=True)
class IntegerNetwork:
    """A feed-forward integer network; populations come after everything they listen to."""

    T: int
    version: str
    input_shape: tuple[int, ...]
    input_table: Integers  # [C, 256]
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]
    readout: str
    readout_kind: str  # potential: v(T), potentials: sum over t of v(t), spikes: their number
    divisor: float

    def into(self, name: str) -> list[Connection]:
        """Return the connections that end in population `name`."""
        return [item for item in self.connections if item.target == name]


def read_network(directory: Path) -> IntegerNetwork:
    """Read and check `network.json` and `network.npz` of a directory.

    Raises:
        BundleError: a file is missing or malformed, or a value is outside its range.
    """
    document = read_json(directory / "network.json", BundleError)
    arrays = read_npz(directory / "network.npz", BundleError)
    return parse_network(document, arrays, str(directory / "network.json"))


def parse_network(
    document: Any, arrays: Mapping[str, NDArray[Any]], origin: str = "network.json"
) -> IntegerNetwork:
    """Check a network given as the JSON document and the arrays beside it."""
    fields = Fields(document, origin)
    if fields.integer("schema", 1, 1 << 30) != 1:
        raise fields.bad("schema", "schema 1")
    steps = fields.integer("T", 1, 1 << 16)
    image, table = _input(fields.child("input"), arrays)
    shapes = {INPUT: image}
    depths = {INPUT: 0}
    populations: list[Population] = []
    for entry in fields.children("populations"):
        population = _population(entry, arrays, steps)
        if population.name in shapes:
            raise entry.bad("name", "a name that no other population has")
        if population.node is not None and population.node in {item.node for item in populations}:
            raise entry.bad("node", "a node that no other population stands for")
        if steps * math.prod(population.shape) > LARGEST_RUN:
            raise entry.bad("shape_whc", f"at most {LARGEST_RUN} neurons times T = {steps}")
        shapes[population.name] = population.shape
        depths[population.name] = population.depth
        populations.append(population)
    host = fields.child("input").text("encoding") == HOST_BIAS
    connections = tuple(
        _connection(entry, arrays, shapes, depths, host) for entry in fields.children("connections")
    )
    for population in populations:
        into = [item for item in connections if item.target == population.name]
        check_mantissas(population, into, table, BIAS_RANGE, origin)
    _require_own_names(connections, origin)
    _order(populations, connections, origin)
    readout = fields.child("readout")
    name = readout.text("population")
    kind = readout.text("kind") if "kind" in readout.value else "potential"  # as it was before
    if kind not in READOUTS:
        raise readout.bad("kind", " or ".join(READOUTS))
    spiking = kind == "spikes"
    if name not in [item.name for item in populations if item.spiking == spiking]:
        expected = str(spiking).lower()
        raise readout.bad("population", f"the name of a population with spiking = {expected}")
    return IntegerNetwork(
        T=steps,
        version=str(document.get("tool_version", "unknown")),
        input_shape=image,
        input_table=table,
        populations=tuple(populations),
        connections=connections,
        readout=name,
        readout_kind=kind,
        divisor=readout.positive("divisor"),
    )


def _input(fields: Fields, arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[int, ...], Integers]:
    if fields.text("encoding") not in ENCODINGS:
        raise fields.bad("encoding", f"{' or '.join(ENCODINGS)} (this engine runs no other)")
    shape = fields.shape("shape_whc")
    if len(shape) != 3:
        raise fields.bad("shape_whc", "three numbers: width, height, channels")
    table = fields.array("table_key", arrays, -MESSAGE_LIMIT, MESSAGE_LIMIT - 1)
    if table.shape != (shape[0], 256):
        raise fields.bad("table_key", f"an array of shape {(shape[0], 256)}, not {table.shape}")
    return shape, table


def _population(fields: Fields, arrays: Mapping[str, NDArray[Any]], steps: int) -> Population:
    # The reset phase is a matter of the pipelined chip; here every sample starts from rest, so
    # only the interval must be the length of a sample.
    if fields.integer("reset_interval", 1, 1 << 16) != steps:
        raise fields.bad("reset_interval", f"T = {steps}")
    fields.integer("reset_offset", 0, 1 << 16)
    shape = fields.shape("shape_whc")
    exponent = fields.integer("bias_exp", 0, 7)
    bias = None
    if fields.get("bias_key") is not None:
        bias = fields.array("bias_key", arrays, *BIAS_RANGE) << exponent
        if bias.shape == (shape[0],) and len(shape) == 3:
            bias = bias[:, None, None]
        elif bias.shape != shape:
            raise fields.bad("bias_key", f"shape {(shape[0],)} or {shape}, not {bias.shape}")
    node = fields.get("node")
    return Population(
        name=fields.text("name"),
        node=None if node is None else fields.text("node"),
        shape=shape,
        du=fields.integer("du", -1, 4095),
        dv=fields.integer("dv", 0, 4096),
        vth=fields.integer("vth", 0, 131071),
        bias=bias,
        bias_exp=exponent,
        scale=fields.positive("scale"),
        depth=fields.integer("depth", 1, 1 << 16),
        spiking=fields.flag("spiking"),
    )


def _connection(
    fields: Fields,
    arrays: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    depths: Mapping[str, int],
    host: bool,
) -> Connection:
    source, target = fields.text("source"), fields.text("target")
    for key, name in (("source", source), ("target", target)):
        if name not in shapes or (key == "target" and name == INPUT):
            raise fields.bad(key, "the name of a population")
    shift = _shift(fields, host and source == INPUT)
    delay = fields.integer("delay", 0, 62 if shift is None else 0)
    if shift is None and depths[target] != depths[source] + 1 + delay:
        raise fields.bad(
            "delay", f"depths {depths[source]} -> {depths[target]} to differ by 1 + delay"
        )
    if fields.integer("weight_exp", -8, 8) != 0:
        raise fields.bad("weight_exp", "0")
    limits = WEIGHT_RANGE if shift is None else HOST_WEIGHT_RANGE
    weight = fields.array("weight_key", arrays, *limits)
    connection = Connection(
        name=fields.text("name"),
        source=source,
        target=target,
        kind=_kind(fields, weight),
        weight=weight,
        stride=fields.pair("stride", 1),
        padding=fields.pair("padding", 0),
        dilation=fields.pair("dilation", 1),
        groups=fields.integer("groups", 1, 1 << 16),
        graded=fields.integer("message_bits", 0, 32 if shift is None else 0) > 0,
        shift=shift,
    )
    _check_geometry(fields, connection, shapes[source], shapes[target])
    return connection


def _shift(fields: Fields, host: bool) -> int | None:
    if host:
        return fields.integer("host_shift", 0, 31)
    if "host_shift" in fields.value:
        raise fields.bad("host_shift", f"none: it belongs to {HOST_BIAS} connections of the input")
    return None


def _kind(fields: Fields, weight: Integers) -> Literal["conv", "dense"]:
    kind, delay = fields.text("kind"), fields.integer("delay", 0, 62)
    if kind not in ("conv", "dense", "sparse_delay"):
        raise fields.bad("kind", "conv, dense or sparse_delay")
    if delay and kind != "sparse_delay":
        raise fields.bad("delay", f"0: a {kind} connection has no synaptic delay, sparse_delay has")
    if kind == "sparse_delay":
        return "conv" if weight.ndim == 4 else "dense"
    return "conv" if kind == "conv" else "dense"


def _check_geometry(
    fields: Fields, item: Connection, source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    weight = item.weight.shape
    if item.kind == "dense":
        if weight != (math.prod(target), math.prod(source)):
            wanted = (math.prod(target), math.prod(source))
            raise fields.bad("weight_key", f"shape {wanted} (outputs, inputs), not {weight}")
        return
    if len(source) != 3 or len(target) != 3 or len(weight) != 4:
        raise fields.bad("kind", "source, target and kernel with channels, height and width")
    channels, outputs = source[0], target[0]
    if channels % item.groups or outputs % item.groups:
        raise fields.bad("groups", f"a divisor of {channels} and {outputs} channels")
    if weight[:2] != (outputs, channels // item.groups):
        wanted = (outputs, channels // item.groups)
        raise fields.bad("weight_key", f"{wanted} output and input channels, not {weight[:2]}")
    size = tuple(
        (source[1 + i] + 2 * item.padding[i] - item.dilation[i] * (weight[2 + i] - 1) - 1)
        // item.stride[i]
        + 1
        for i in (0, 1)
    )
    if size != target[1:]:
        raise fields.bad("target", f"a population of height and width {size}, not {target[1:]}")


def _require_own_names(connections: tuple[Connection, ...], origin: str) -> None:
    """Refuse a connection that is there twice: its weights would count twice."""
    for name, count in Counter(item.name for item in connections).items():
        if count > 1:
            raise BundleError(
                f"{origin}: {count} connections are called {name!r}, expected one; "
                "export the bundle again"
            )


def _order(populations: list[Population], connections: tuple[Connection, ...], origin: str) -> None:
    """Sort populations by depth; refuse sources that send nothing and targets that hear nothing."""
    populations.sort(key=lambda item: item.depth)
    silent = {item.name for item in populations if not item.spiking}
    for connection in connections:
        if connection.source in silent:
            raise BundleError(
                f"{origin}: connection {connection.name!r} starts at the read-out "
                f"{connection.source!r}, which sends no spikes"
            )
    heard = {item.target for item in connections}
    for population in populations:
        if population.name not in heard:
            raise BundleError(f"{origin}: population {population.name!r} has no connection")
