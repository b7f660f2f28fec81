"""Bias correction: what rounded weights add to the mean input of a channel is taken out again.

Rounding W to W_q shifts the mean input of a channel by (W_q - W) E[x], and few bits shift it far.
With E over synthetic images, steps and places, layer by layer from the image on,

    b_q <- b_q + E[W x + b] - E[W_q x_q + b_q]

where x are the spikes of the network that is not rounded, x_q those of the rounded and corrected
one. Source: Nagel et al. (2019), data-free quantization, for networks without spikes.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor

from stars_deploy.distillation.integer_paths import operators_of
from stars_deploy.distillation.integer_twin import IntegerTwin, Operator


@torch.no_grad()
def correct_biases(network: IntegerTwin, messages: Tensor) -> int:
    """Correct the biases of `network` in place, by its integer messages [B, C, H, W].

    A population has to have an operator with a bias that leads nowhere else; others are left.

    Returns: the number of populations, with the read-out, that were corrected.
    """
    exact = copy.deepcopy(network)  # keeps the biases as they were
    shared = Counter(item for name in network.order for item in _feeding(network, name))
    uses = Counter(source for source, _ in network.graph.edges)
    goals, found = {network.input: messages[None]}, {network.input: messages[None]}
    corrected = 0
    for name in network.order:
        if name == network.input:
            continue
        goal, own = exact.drive(name, goals), network.drive(name, found)
        free = [item for item in _feeding(network, name) if shared[item] == 1]
        biased = [network.by_name[item] for item in free if network.by_name[item].has_bias]
        if biased:
            own = own + _moved(biased[0], goal, own)
            corrected += 1
        goals[name] = exact.value(name, goal, rounded=False)
        found[name] = network.value(name, own, rounded=True)
        for source in network.sources[name]:  # maps of many images are large
            uses[source] -= 1
            if not uses[source]:
                del goals[source], found[source]
    return corrected


def _feeding(network: IntegerTwin, name: str) -> list[str]:
    """Return the operators that end in a population or the read-out."""
    ends = name in network.neurons or name == network.output
    return [item for item in operators_of(network.graph, name) if item in network.by_name] * ends


def _moved(operator: Operator, goal: Tensor, own: Tensor) -> Tensor:
    """Correct a bias [O]; return by how much its rounded value moved, in the shape of `own`[0]."""
    unit, shape, outputs = operator.grid.bias_step, own.shape[2:], len(operator.bias)
    before = operator.numbers(rounded=True)[1]
    off = (goal.mean((0, 1)) - own.mean((0, 1))).view(outputs, -1).mean(1)
    # From the rounded bias on: `own` has its rounding in it already.
    operator.bias.copy_((before + off / unit) / operator.grid.threshold)
    moved = (operator.numbers(rounded=True)[1] - before) * unit
    return moved.repeat_interleave(shape.numel() // outputs).view(shape)
