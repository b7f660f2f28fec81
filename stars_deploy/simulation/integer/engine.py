"""Batched integer engine: the written Loihi parameters, computed as Lava's fixed_pt models do.

Per population and step, with tz = rounding toward zero and a = sum of weighted messages:

    u = tz(u (4096 - (du + 1)) / 4096) + (a << 6)
    v = tz(v (4096 - dv) / 4096) + u + B
    s = v > (vth << 6);   v = 0 where s

Layers run one after the other over all T steps of a sample, from rest, without delays: what a
pipelined chip computes after the shift of its pipeline depth. Where the host adds to the biases
what the image gives (encoding host_bias), B is one per image. Source of the equations: lava-nc
0.10.0, process models LIF, Dense and Conv with tag fixed_pt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import DataError
from stars_deploy.simulation.integer.layer import host_bias, prepare, weighted_sums
from stars_deploy.simulation.integer.network import (
    INPUT,
    IntegerNetwork,
    Population,
    parse_network,
    read_network,
)
from stars_deploy.simulation.integer.neurons import Activity, Readout, advance
from stars_deploy.simulation.recording import EngineInfo, Recording, Spikes

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
CHUNK_VALUES = 1 << 20  # neuron-steps of the widest population that are worked on together
Result = TypeVar("Result")
Read = Callable[[Population, Activity], Result]


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

        def read(population: Population, answer: Activity) -> tuple[Array, Array | None]:
            distance = None
            if answer.voltages is not None:
                voltages = _numpy(answer.voltages.double() / 64)
                distance = ((voltages - population.vth) / population.scale).astype(np.float32)
            return _numpy(answer.spikes.neg().byte()), distance

        spikes, logits = self._collect(images, feed, margins, read)
        return Recording(
            engine=self.info,
            logits=logits,
            spikes={
                node: np.concatenate([part for part, _ in parts], axis=1)
                for node, parts in spikes.items()
            },
            margins={
                node: np.concatenate([part for _, part in parts if part is not None], axis=1)
                for node, parts in spikes.items()
            }
            if margins
            else None,
        )

    def statistics(self, images: NDArray[np.uint8]) -> Statistics:
        """Compute logits and spike counts only; nothing is kept per step or neuron."""
        import torch

        def read(population: Population, answer: Activity) -> Array:
            steps, _, *shape = answer.spikes.shape
            kind = torch.float32 if steps * math.prod(shape) < 1 << 24 else torch.float64
            axes = (0, *range(2, answer.spikes.ndim))
            return _numpy(answer.spikes.sum(axes, dtype=kind).neg()).astype(np.int64)

        spikes, logits = self._collect(images, None, False, read)
        return Statistics(logits, {node: np.concatenate(parts) for node, parts in spikes.items()})

    def _collect(
        self, images: NDArray[np.uint8], feed: Spikes | None, keep: bool, read: Read[Result]
    ) -> tuple[dict[str, list[Result]], NDArray[np.float32]]:
        """Run all chunks; return what `read` made of every spiking node, and the logits [N, K]."""
        self._check(images, feed)

        def work(start: int) -> tuple[dict[str, Result], Array]:
            part = slice(start, start + self._chunk)
            given = {node: feed[node][:, part] for node in feed} if feed else {}
            return self._chunk_results(images[part], given, keep, read)

        found = in_threads(work, range(0, len(images), self._chunk), self.device)
        spikes = {node: [results[node] for results, _ in found] for node in self.nodes}
        return spikes, np.concatenate([logits for _, logits in found])

    def _chunk_results(
        self, images: NDArray[np.uint8], feed: Spikes, keep: bool, read: Read[Result]
    ) -> tuple[dict[str, Result], Array]:
        import torch

        results: dict[str, Result] = {}
        logits = np.zeros(0)
        with torch.inference_mode():
            messages: dict[str, Tensor] = {INPUT: self._messages(images)}
            for layer in self._layers:
                population = layer.population
                host = host_bias(layer, messages)
                sums = weighted_sums(layer, messages, host)
                answer = advance(layer, sums, self.network.T, keep, host)
                if population.name == self.network.readout:
                    logits = self._logits(answer)
                if isinstance(answer, Readout):
                    continue
                messages[population.name] = answer.spikes
                if population.node is not None:
                    results[population.node] = read(population, answer)
                    if population.node in feed:
                        messages[population.name] = self._fed(feed[population.node])
        return results, logits

    def _fed(self, spikes: NDArray[np.uint8]) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(spikes)).to(self.device, torch.float32).neg()

    def _messages(self, images: NDArray[np.uint8]) -> Tensor:
        """Look up the negated messages -table[c, pixel] as float32 [1, B, C, H, W]."""
        import torch

        table = -self.network.input_table.astype(np.float32)
        values = np.stack([table[c][images[:, c]] for c in range(images.shape[1])], axis=1)
        return torch.from_numpy(values).to(self.device)[None]

    def _logits(self, answer: Activity | Readout) -> Array:
        """Return voltages, or the number of spikes over T, / divisor [N, K]."""
        value = answer.voltage if isinstance(answer, Readout) else answer.spikes.sum(dim=0).abs()
        read = _numpy(value.double()).reshape(len(value), -1)
        return (read / self.network.divisor).astype(np.float32)

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


def _numpy(tensor: Tensor) -> Array:
    return np.asarray(tensor.cpu().numpy())


def in_threads(work: Callable[[int], Result], starts: Sequence[int], device: str) -> list[Result]:
    """Map `work` over chunks, as many at a time as torch has threads, each on one thread.

    A chunk is too small to be shared between threads: waiting for each other after every
    operation would cost more than the operation.
    """
    import torch

    threads = torch.get_num_threads() if device == "cpu" else 1
    if threads == 1 or len(starts) == 1:
        return [work(start) for start in starts]
    try:
        with ThreadPoolExecutor(
            min(threads, len(starts)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(work, starts))
    finally:
        torch.set_num_threads(threads)  # the setting of a worker is also torch's default
