"""A small spiking network in plain NumPy, with faults to order, that answers like an engine."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from stars_deploy.simulation.recording import EngineInfo, Recording

T, SIZE, CLASSES = 4, 6, 3


def make_weights(seed=0, widths=(SIZE * SIZE, 20, 16, 12, CLASSES)):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return [rng.normal(0.15, 2.0, (n_out, n_in)) / np.sqrt(n_in) for n_in, n_out in pairs]


def images(count=24, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, SIZE, SIZE), np.uint8)


@dataclass
class FakeEngine:
    """H = V + (X - V) / 2, spike where H > threshold of the layer, reset to 0."""

    weights: list = field(default_factory=make_weights)
    thresholds: tuple = (0.3, 0.3, 0.3)
    strict: bool = True
    readout_bias: float = 0.0
    nudge: float = 0.0  # added to H of lif2, as another summation order would
    name: str = "fake"
    kind: str = "simulated"

    def __post_init__(self):
        self.info = EngineInfo(self.name, "1", self.kind)
        self.nodes = [f"lif{i + 1}" for i in range(len(self.thresholds))]
        self.calls = []

    def run(self, images, feed=None, margins=False):
        self.calls.append(len(images))
        x = np.repeat((images.reshape(len(images), -1) / 255.0)[None], T, axis=0)
        spikes, gaps = {}, {}
        for index, (node, threshold) in enumerate(zip(self.nodes, self.thresholds, strict=True)):
            own, gap = self._layer(x @ self.weights[index].T, node, threshold)
            spikes[node], gaps[node] = own, gap.astype(np.float32)
            x = (own if feed is None else feed[node]).astype(np.float64)
        logits = (x @ self.weights[-1].T).mean(axis=0) + self.readout_bias
        return Recording(self.info, logits.astype(np.float32), spikes, gaps if margins else None)

    def _layer(self, current, node, threshold):
        v = np.zeros_like(current[0])
        spikes, gaps = np.zeros(current.shape, np.uint8), np.zeros(current.shape)
        for t in range(T):
            h = v + (current[t] - v) / 2 + (self.nudge if node == "lif2" else 0.0)
            gaps[t] = h - threshold
            fired = gaps[t] > 0 if self.strict else gaps[t] >= 0
            spikes[t], v = fired, np.where(fired, 0.0, h)
        return spikes, gaps


def changed(weights, layer, row=0, by=0.5):
    """Return the weights with one row of one layer shifted."""
    copies = [w.copy() for w in weights]
    copies[layer][row] += by
    return copies
