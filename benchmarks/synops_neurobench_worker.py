"""The NeuroBench side of synops_neurobench.py; its own environment, imports nothing of ours.

synops_neurobench_worker.py NETWORK.npz ANSWER.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.workload import SynapticOperations
from neurobench.models import TorchModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def fire(v, current):
    """tau = 2, hard reset to 0, spike where V > 1."""
    v = v + (current - v) / 2
    spikes = (v > 1).to(v.dtype)
    return v * (1 - spikes), spikes


class Student(nn.Module):
    """The network of energy_common.py in plain torch; every layer is called at every step."""

    def __init__(self, data):
        super().__init__()
        self.steps = int(data["steps"])
        self.conv1 = nn.Conv2d(1, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(64, 10)
        for name in ("conv1", "conv2", "fc"):
            layer = getattr(self, name)
            layer.weight.data = torch.from_numpy(data[f"{name}.weight"])
            layer.bias.data = torch.from_numpy(data[f"{name}.bias"])
        self.spikes = {"lif1": 0, "lif2": 0}

    def forward(self, x):
        v1 = v2 = 0.0
        total = 0.0
        for _ in range(self.steps):
            v1, s1 = fire(v1, self.conv1(x))
            v2, s2 = fire(v2, self.conv2(s1))
            self.spikes["lif1"] += int(s1.sum())
            self.spikes["lif2"] += int(s2.sum())
            total = total + self.fc(s2.flatten(1))
        return total / self.steps


def counted(data):
    """Operations and spikes per image, by NeuroBench and by the layers themselves."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    model = Student(data)
    images = torch.from_numpy(data["images"])
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=4)
    with torch.no_grad():
        benchmark = Benchmark(TorchModel(model), loader, [], [], [[], [SynapticOperations]])
        found = benchmark.run(quiet=True)["SynapticOperations"]
    return {
        "neurobench": version("neurobench"), "torch": torch.__version__,
        "synaptic_operations": {key: float(value) for key, value in found.items()},
        "spikes": {name: count / len(images) for name, count in model.spikes.items()},
    }  # fmt: skip


if __name__ == "__main__":
    network, answer = sys.argv[1:]
    Path(answer).write_text(json.dumps(counted(dict(np.load(network)))))
