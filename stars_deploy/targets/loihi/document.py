"""`network.json` and `network.npz`: the integers of a lowered network, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy import __version__
from stars_deploy.files import write_json, write_npz
from stars_deploy.graph.geometry import Shape
from stars_deploy.graph.metadata import GraphMetadata
from stars_deploy.targets.loihi.encode import InputCode
from stars_deploy.targets.loihi.host import ENCODING as HOST
from stars_deploy.targets.loihi.quantise import Quantised, parallel_parts
from stars_deploy.targets.loihi.stages import INPUT, Incoming, Stage
from stars_deploy.targets.loihi.target import Ranges

Array = NDArray[Any]
BIAS_EXPONENT = 6  # a bias of 1 weighs as much as an activation of 1; NetX knows no other
NO_CURRENT_MEMORY = 4095  # du: the current is the activation of the step, nothing more

AXES = {
    "shape_whc": "width, height, channels; dense populations have one axis",
    "input_table": "channel, pixel value 0..255; the message is table[channel, pixel]",
    "conv weight": "output channel, input channel / groups, kernel height, kernel width; "
    "cross-correlation, as in PyTorch",
    "dense weight": "output, input; a map of (C, H, W) is flattened in this order",
    "bias": "output channel, or one value per neuron in the order (C, H, W)",
    "stride, padding, dilation": "height, width",
    "sparse_delay": "a conv or dense weight whose synapses stand for themselves and wait `delay` "
    "steps more",
}
HOST_AXES = {
    "host_bias": "nothing is sent: each connection from `input` gives every neuron of its target "
    "c = (sum of weight * table[channel, pixel] + (2^host_shift >> 1)) >> host_shift, with 64-bit "
    "integers and an arithmetic shift; the bias mantissa is bias + the sum of these c in all T "
    "steps of a sample, k T + 1 + depth to (k + 1) T + depth for sample k"
}


@dataclass(frozen=True)
class LoweredNetwork:
    """A network in Loihi's integers."""

    document: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def write(self, directory: Path) -> None:
        """Write network.json and network.npz; equal networks give equal bytes."""
        write_npz(directory / "network.npz", self.arrays)
        write_json(directory / "network.json", self.document)


@dataclass(frozen=True)
class Readout:
    """How logits are read: `potential` v(T), `potentials` sum over t of v(t), or `spikes`.

    Logits are what is read / `divisor`.
    """

    population: str
    kind: str
    divisor: float


def assemble(
    stages: Sequence[Stage],
    integers: Sequence[Quantised],
    decays: Sequence[int],
    readout: Readout,
    code: InputCode,
    shape: Shape,
    metadata: GraphMetadata,
    profile: str,
    ranges: Ranges,
    balance: str,
) -> LoweredNetwork:
    """Put quantised stages together; `shape` is the image's (C, H, W)."""
    arrays: dict[str, Array] = {"input_table": code.table}
    populations: list[dict[str, Any]] = []
    connections: list[dict[str, Any]] = []
    taken = {item.name for stage in stages for item in stage.incoming}
    for stage, found, decay in zip(stages, integers, decays, strict=True):
        populations.append(_population(stage, found, decay, metadata.T))
        if found.bias.any():
            arrays[f"b.{stage.name}"] = _stored(found.bias)
        for item, weight, shift in zip(stage.incoming, found.weights, found.shifts, strict=True):
            if shift is not None:
                key = _kept(arrays, f"w.{item.name}", weight, item.node)
                connections.append(_host_connection(stage, item, key, shift))
                continue
            for name, part in _parts(item, weight, ranges, taken):
                key = _kept(arrays, f"w.{name}", part, item.node)
                connections.append(_connection(stage, item, name, key, code.bits))
    document = {
        "schema": 1,
        "tool_version": __version__,
        "profile": profile,
        "balance": balance,
        "T": metadata.T,
        "input": {
            "encoding": HOST if code.host else "signed_q",
            "bits": code.bits,
            "scale": code.k,
            "mean": list(metadata.mean),
            "std": list(metadata.std),
            "table_key": "input_table",
            "shape_whc": list(reversed(shape)),
        },
        "populations": populations,
        "connections": connections,
        "readout": {
            "population": readout.population,
            "kind": readout.kind,
            "divisor": readout.divisor,
        },
        "axes": AXES | HOST_AXES if code.host else AXES,
    }
    return LoweredNetwork(document, arrays)


def _stored(bias: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return [C] for a bias per channel, [C, 1, 1]."""
    return bias[:, 0, 0] if bias.shape[1:] == (1, 1) else bias


def _parts(
    item: Incoming, weight: NDArray[np.int32], ranges: Ranges, taken: set[str]
) -> list[tuple[str, NDArray[np.int32]]]:
    """Return a connection, or those in parallel that hold its weights together.

    The first has the operator's name, the others names that are not `taken`, and take them.
    """
    first, *others = parallel_parts(weight, ranges)
    named = [(item.name, first)]
    for number, part in enumerate(others, 2):
        name = f"{item.name}_{number}"
        while name in taken:
            name += "_"
        taken.add(name)
        named.append((name, part))
    return named


def _kept(arrays: dict[str, Array], key: str, weight: NDArray[np.int32], node: str) -> str:
    """Store weights under `key`, unless the operator stands there already for another source."""
    same = f"w.{node}"
    if same in arrays and np.array_equal(arrays[same], weight):
        return same
    arrays[key] = weight
    return key


def _connection(stage: Stage, item: Incoming, name: str, key: str, bits: int) -> dict[str, Any]:
    return {
        "name": name,
        "node": item.node,
        "source": item.source,
        "target": stage.name,
        "kind": "sparse_delay" if item.delay else item.kind,
        "weight_key": key,
        "stride": list(item.stride),
        "padding": list(item.padding),
        "dilation": list(item.dilation),
        "groups": item.groups,
        "delay": item.delay,
        "message_bits": bits if item.source == INPUT else 0,
        "weight_exp": 0,
    }


def _host_connection(stage: Stage, item: Incoming, key: str, shift: int) -> dict[str, Any]:
    """Return what the host computes: geometry and weights as of any other connection."""
    return _connection(stage, item, item.name, key, 0) | {"host_shift": shift}


def _population(stage: Stage, found: Quantised, decay: int, steps: int) -> dict[str, Any]:
    return {
        "name": stage.name,
        "node": None if stage.relay else stage.name,
        "shape_whc": [int(size) for size in reversed(stage.shape)],
        "du": NO_CURRENT_MEMORY,
        "dv": decay,
        "vth": found.threshold,
        "bias_exp": BIAS_EXPONENT,
        "bias_key": f"b.{stage.name}" if np.any(found.bias) else None,
        "reset_interval": steps,
        # Data of a sample reach this depth that many steps after its first step.
        "reset_offset": (1 + stage.depth) % steps,
        "depth": stage.depth,
        "scale": found.scale,
        "spiking": stage.spiking,
    }
