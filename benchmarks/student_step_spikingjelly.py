"""The SpikingJelly side of student_step.py; runs in its own environment, imports nothing of ours.

Reads one command a line: `step` does one forward and backward pass and answers with its seconds,
`gradients FILE` saves those of a step in float64, `memory` answers with the peak of resident bytes
since the start of the first step, less what was there before.
"""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn


class Block(nn.Module):
    def __init__(self, weights, name, stride):
        super().__init__()
        shape = weights[f"{name}.conv.weight"].shape
        bias = f"{name}.conv.bias" in weights
        self.conv = nn.Conv2d(shape[1], shape[0], shape[2], stride, shape[2] // 2, bias=bias)
        self.bn = nn.BatchNorm2d(shape[0])

    def forward(self, x):
        return self.bn(self.conv(x))


def lif():
    return neuron.LIFNode(
        tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0,
        surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True, step_mode="m",
    )  # fmt: skip


class Student(nn.Module):
    """The wiring of resnet20 (post_add, pad shortcuts) or vgg16, multi-step, the stem once."""

    def __init__(self, family, weights, T):
        super().__init__()
        self.family, self.T = family, T
        names = [name.removesuffix(".conv.weight") for name in weights if "conv.weight" in name]
        self.names = names
        strided = {"stages.1.0.conv1", "stages.2.0.conv1"}
        self.blocks = nn.ModuleList(
            Block(weights, name, 2 if name in strided else 1) for name in names
        )
        self.neurons = nn.ModuleList(lif() for _ in names)
        self.fc = nn.Linear(*reversed(weights["fc.weight"].shape))
        for name, block in zip(names, self.blocks, strict=True):
            block.load_state_dict(
                {
                    k.removeprefix(name + "."): v
                    for k, v in weights.items()
                    if k.startswith(name + ".")
                }
            )
        self.fc.load_state_dict({k[3:]: v for k, v in weights.items() if k.startswith("fc.")})

    def fire(self, index, x):
        return self.neurons[index](x.unflatten(0, (self.T, -1))).flatten(0, 1)

    def forward(self, x):
        current = self.blocks[0](x)
        x = self.neurons[0](current.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).flatten(0, 1)
        if self.family == "vgg16":
            ends = {1, 3, 6, 9}
            for index in range(1, len(self.blocks)):
                x = self.fire(index, self.blocks[index](x))
                x = F.avg_pool2d(x, 2) if index in ends else x
        else:
            for index in range(1, len(self.blocks), 2):
                inner = self.fire(index, self.blocks[index](x))
                out = self.blocks[index + 1](inner)
                if out.shape != x.shape:
                    spare = (out.shape[1] - x.shape[1]) // 2
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, spare, spare))
                x = self.fire(index + 1, out + x)
        return self.fc(x.mean((2, 3))).unflatten(0, (self.T, -1)).mean(0)


def kd_loss(logits, goal):
    """400 KL(goal / 20 || logits / 20), mean over the batch."""
    student, teacher = F.log_softmax(logits / 20, dim=1), F.log_softmax(goal / 20, dim=1)
    return 400 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def main():
    family, path, T, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    x, goal = arrays.pop("x"), arrays.pop("goal")
    student = Student(family, arrays, T).train().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = memory("VmRSS")
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "step":
            functional.reset_net(student)
            begun = time.perf_counter()
            student.zero_grad(set_to_none=True)
            kd_loss(student(x), goal).backward()
            print(time.perf_counter() - begun, flush=True)
        elif command == "gradients":
            functional.reset_net(student)
            exact = copy.deepcopy(student).double()
            kd_loss(exact(x.double()), goal.double()).backward()
            names = [f"{name}.conv.weight" for name in exact.names]
            convs = [block.conv.weight.grad.numpy() for block in exact.blocks]
            np.savez(argument, **dict(zip(names, convs, strict=True)))
            del exact, convs
            print("saved", flush=True)
        elif command == "memory":
            print(memory("VmHWM") - before, flush=True)


main()
