"""Depth balancing: all paths into a population take equally many steps.

Every connection delays by one step, so a skip connection arrives early by the number of
populations that it skips. The missing steps are filled in either with relay populations, which
repeat the spikes of their source one step later, or with synaptic delays. With

    depth(target) = 1 + max depth(source)

an edge needs depth(target) - 1 - depth(source) steps more; a population's reset phase is then
(1 + depth) mod T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast, get_args

import numpy as np

from stars_deploy.errors import GraphError, InputError
from stars_deploy.graph.geometry import Shape
from stars_deploy.graph.linear import LARGEST_MATRIX, as_operator, identity
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.loihi.stages import INPUT, Incoming, Stage, connection, shifted

Balance = Literal["relay", "delay"]
LONGEST_DELAY = 62  # slots of a synaptic delay in lava-dl 0.6.0 and on the chips


def balance_named(name: str) -> Balance:
    """Return `name` if it is a way to balance; InputError else."""
    if name not in get_args(Balance):
        raise InputError(
            f"--balance {name!r} is unknown; expected {' or '.join(get_args(Balance))}"
        )
    return cast(Balance, name)


def balanced(
    stages: Sequence[Stage], balance: Balance, host: bool = False
) -> tuple[list[Stage], list[Finding]]:
    """Return the stages with depths, relays and delays, sources first, and what that cost.

    Graded messages of the input cannot be relayed by spikes: they always wait in synapses. With
    `host`, the image is no message: the host gives it to every population when its turn comes.
    """
    depths = {INPUT: 0}
    shapes = {stage.name: stage.shape for stage in stages}
    taken = {*shapes, *(item.name for stage in stages for item in stage.incoming)}
    result: list[Stage] = []
    relays: dict[str, Stage] = {}
    delayed: list[tuple[Stage, Incoming]] = []
    found: list[Finding] = []
    for stage in stages:
        depth = 1 + max((depths[item.source] for item in stage.incoming), default=0)
        depths[stage.name] = depth
        stage = replace(stage, depth=depth)
        for index, item in enumerate(stage.incoming):
            missing = depth - 1 - depths[item.source]
            if host and item.source == INPUT:
                continue
            if missing and balance == "relay" and item.source != INPUT:
                shape = shapes[item.source]
                try:
                    chain = _relays(item.source, shape, depths[item.source], missing, taken)
                except GraphError:
                    found.append(_too_wide(item.source, math.prod(shape)))
                    continue
                result += [relay for relay in chain if relay.name not in relays]
                relays |= {relay.name: relay for relay in chain}
                stage = shifted(stage, index, source=chain[-1].name)
            elif missing:
                stage = shifted(stage, index, delay=missing)
                delayed.append((stage, stage.incoming[index]))
        result.append(stage)
    found += [*_relay_cost(list(relays.values())), *_delay_cost(delayed), *_too_long(delayed)]
    return sorted(result, key=lambda stage: stage.depth), found


def _relays(source: str, shape: Shape, depth: int, count: int, taken: set[str]) -> list[Stage]:
    """Return `count` relays in a row after `source`, under names that are not `taken`."""
    chain = []
    operator, before = as_operator(identity(shape)), source
    for step in range(1, count + 1):
        name = f"{source}_relay{step}"
        while name in taken or f"{name}_in" in taken:
            name += "_"
        incoming = connection(f"{name}_in", source, before, operator)
        bias = np.zeros((1,) * len(shape))
        chain.append(Stage(name, shape, (incoming,), bias, None, True, depth + step))
        before = name
    return chain


def _too_wide(source: str, neurons: int) -> Finding:
    """A relay of a vector is a matrix, which is stored as a whole."""
    return Finding(
        code="relay",
        severity="error",
        node=source,
        message=f"a relay of its {neurons} neurons needs a matrix of {neurons} x {neurons}",
        value=float(neurons),
        limit=float(math.isqrt(LARGEST_MATRIX)),
        remedy="use synaptic delays (--balance delay)",
    )


def synapses(stage: Stage, item: Incoming) -> int:
    """Return how many synapses an operator has when each is stored for itself.

    A kernel tap has one where it reads a pixel, none where it reads padding.
    """
    if item.kind == "dense":
        return int(np.count_nonzero(item.weight))
    rows, columns = (_reads(item, axis, stage.shape[1 + axis]) for axis in (0, 1))
    return int(np.count_nonzero(item.weight, axis=(0, 1)).ravel() @ np.outer(rows, columns).ravel())


def _reads(item: Incoming, axis: int, made: int) -> list[int]:
    """Return, per kernel tap along an axis, how many of the `made` positions read a pixel."""
    at = item.stride[axis] * np.arange(made) - item.padding[axis]
    taps = [at + tap * item.dilation[axis] for tap in range(item.weight.shape[2 + axis])]
    return [int(((tap >= 0) & (tap < item.given[1 + axis])).sum()) for tap in taps]


def _relay_cost(relays: list[Stage]) -> list[Finding]:
    if not relays:
        return []
    neurons = sum(math.prod(stage.shape) for stage in relays)
    return [
        Finding(
            code="balance",
            severity="info",
            node=None,
            message=f"skip connections are balanced by {len(relays)} relay populations "
            f"({', '.join(stage.name for stage in relays)}): {neurons} neurons more, with one "
            "synapse and one axon each",
            value=float(neurons),
            remedy="--balance delay uses synaptic delays instead",
        )
    ]


def _delay_cost(delayed: list[tuple[Stage, Incoming]]) -> list[Finding]:
    if not delayed:
        return []
    count = sum(synapses(stage, item) for stage, item in delayed)
    graded = [item.name for _, item in delayed if item.source == INPUT]
    note = f" ({', '.join(graded)}: graded messages, which no relay repeats)" if graded else ""
    return [
        Finding(
            code="balance",
            severity="info",
            node=None,
            message=f"{len(delayed)} connections are balanced by synaptic delays of up to "
            f"{max(item.delay for _, item in delayed)} steps{note}: {count} synapses, stored "
            "one by one",
            value=float(count),
            remedy="--balance relay uses relay populations where messages are spikes",
        )
    ]


def _too_long(delayed: list[tuple[Stage, Incoming]]) -> list[Finding]:
    return [
        Finding(
            code="synaptic_delay",
            severity="error",
            node=stage.name,
            message=f"{item.name} skips {item.delay} populations; a synapse waits for at most "
            f"{LONGEST_DELAY} steps",
            value=float(item.delay),
            limit=float(LONGEST_DELAY),
            remedy="use shorter skips: no relay repeats the messages of the image"
            if item.source == INPUT
            else "use relays (--balance relay), or shorter skips",
        )
        for stage, item in delayed
        if item.delay > LONGEST_DELAY
    ]
