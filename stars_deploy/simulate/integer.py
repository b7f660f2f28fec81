"""Batched integer engine: the written Loihi parameters, computed as Lava's fixed_pt models do.

Per population and step, with tz = rounding toward zero and a = sum of weighted messages:

    u = tz(u (4096 - (du + 1)) / 4096) + (a << 6)
    v = tz(v (4096 - dv) / 4096) + u + B
    s = v > (vth << 6);   v = 0 where s

Layers run one after the other over all T steps of a sample, from rest, without delays: what a
pipelined chip computes after the shift of its pipeline depth. Source of the equations: lava-nc
0.10.0, process models LIF, Dense and Conv with tag fixed_pt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import DataError
from stars_deploy.simulate.integer_layer import Answer, activation, advance, prepare
from stars_deploy.simulate.integer_network import (
    INPUT,
    IntegerNetwork,
    Population,
    parse_network,
    read_network,
)
from stars_deploy.simulate.recording import EngineInfo, Recording, Spikes

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_VALUES = 1 << 18  # neuron-steps of the widest population that are worked on together
Visit = Callable[[Population, Answer], None]


@dataclass(frozen=True)
class Statistics:
    """Logits [N, K] and, per spiking node, the spikes of each image over T and neurons [N]."""

    logits: NDArray[np.float32]
    spikes: Mapping[str, NDArray[np.int64]]


def open_engine(directory: Path, device: str = "cpu") -> IntegerEngine:
    """Return the engine for the `network.json` and `network.npz` of a directory."""
    return IntegerEngine(read_network(directory), device)


def build_engine(
    document: Any, arrays: Mapping[str, NDArray[Any]], device: str = "cpu"
) -> IntegerEngine:
    """Return the engine for a JSON document and its arrays."""
    return IntegerEngine(parse_network(document, arrays), device)


class IntegerEngine:
    """Runs an integer network on uint8 images.

    With `overflow` = "raise", a current that would wrap or a voltage that would clip is an
    EngineError that names the population; with "emulate" it happens as it does in Lava.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        device: str = "cpu",
        overflow: Literal["raise", "emulate"] = "raise",
        chunk: int | None = None,
    ) -> None:
        self.network = network
        self.device = device
        self.info = EngineInfo("integer", network.version, "simulated")
        self.nodes = [item.node for item in network.populations if item.spiking and item.node]
        self._layers = [
            prepare(network, item, device, overflow == "emulate") for item in network.populations
        ]
        widest = max(math.prod(item.shape) for item in network.populations)
        self._chunk = chunk or max(1, CHUNK_VALUES // (network.T * widest))

    def run(
        self,
        images: NDArray[np.uint8],
        feed: Spikes | None = None,
        margins: bool = False,
    ) -> Recording:
        """Record logits, spikes and, if asked, margins (v - (vth << 6)) / (64 scale) before reset.

        With `feed`, every population listens to feed[node] instead of to what was computed.
        """
        logits: list[NDArray[np.float32]] = []
        spikes: dict[str, list[NDArray[np.uint8]]] = {node: [] for node in self.nodes}
        distances: dict[str, list[NDArray[np.float32]]] = {node: [] for node in self.nodes}

        def visit(population: Population, answer: Answer) -> None:
            if not population.spiking:
                logits.append(self._logits(answer))
            elif population.node is not None:
                spikes[population.node].append(_numpy(answer.spikes).astype(np.uint8))
                if answer.voltages is not None:
                    distance = _numpy(answer.voltages.double() / 64 - population.vth)
                    distances[population.node].append(
                        (distance / population.scale).astype(np.float32)
                    )

        self._visit_all(images, feed, margins, visit)
        return Recording(
            engine=self.info,
            logits=np.concatenate(logits),
            spikes=_join(spikes, axis=1),
            margins=_join(distances, axis=1) if margins else None,
        )

    def statistics(self, images: NDArray[np.uint8]) -> Statistics:
        """Compute logits and spike counts only; nothing is kept per step or neuron."""
        logits: list[NDArray[np.float32]] = []
        counts: dict[str, list[NDArray[np.int64]]] = {node: [] for node in self.nodes}

        def visit(population: Population, answer: Answer) -> None:
            if not population.spiking:
                logits.append(self._logits(answer))
            elif population.node is not None:
                total = answer.spikes.flatten(2).sum(dim=2).double().sum(dim=0)
                counts[population.node].append(_numpy(total).astype(np.int64))

        self._visit_all(images, None, False, visit)
        return Statistics(np.concatenate(logits), _join(counts, axis=0))

    def _visit_all(
        self, images: NDArray[np.uint8], feed: Spikes | None, keep: bool, visit: Visit
    ) -> None:
        import torch

        self._check(images, feed)
        with torch.inference_mode():
            for start in range(0, len(images), self._chunk):
                part = slice(start, start + self._chunk)
                given = {node: feed[node][:, part] for node in feed} if feed else {}
                self._visit_chunk(images[part], given, keep, visit)

    def _visit_chunk(
        self, images: NDArray[np.uint8], feed: Spikes, keep: bool, visit: Visit
    ) -> None:
        import torch

        messages: dict[str, Tensor] = {INPUT: self._messages(images)}
        for layer in self._layers:
            population = layer.population
            answer = advance(layer, activation(layer, messages), self.network.T, keep)
            visit(population, answer)
            messages[population.name] = answer.spikes
            if population.node is not None and population.node in feed:
                given = torch.from_numpy(np.ascontiguousarray(feed[population.node]))
                messages[population.name] = given.to(self.device, torch.float32)

    def _messages(self, images: NDArray[np.uint8]) -> Tensor:
        """Look up the graded messages q = table[c, pixel] as float32 [1, B, C, H, W]."""
        import torch

        table = self.network.input_table.astype(np.float32)
        values = np.stack([table[c][images[:, c]] for c in range(images.shape[1])], axis=1)
        return torch.from_numpy(values).to(self.device)[None]

    def _logits(self, answer: Answer) -> NDArray[np.float32]:
        last = _numpy(answer.last.double()).reshape(len(answer.last), -1)
        return (last / self.network.divisor).astype(np.float32)

    def _check(self, images: NDArray[np.uint8], feed: Spikes | None) -> None:
        shape = self.network.input_shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise DataError(
                f"images are {images.dtype} {images.shape}, this network takes uint8 "
                f"(N, {', '.join(map(str, shape))})"
            )
        if len(images) == 0:
            raise DataError("no images were given")
        for population in self.network.populations:
            given = (feed or {}).get(population.node or "")
            wanted = (self.network.T, len(images), *population.shape)
            if given is not None and given.shape != wanted:
                raise DataError(
                    f"spikes fed for {population.node} have shape {given.shape}, expected {wanted}"
                )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.asarray(tensor.cpu().numpy())


def _join(parts: Mapping[str, list[NDArray[Any]]], axis: int) -> dict[str, NDArray[Any]]:
    return {node: np.concatenate(arrays, axis=axis) for node, arrays in parts.items()}
