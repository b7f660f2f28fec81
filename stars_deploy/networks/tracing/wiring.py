"""Junctions in the making: what an operator's result is, before it is known who reads it.

A result is a sum of wires. It becomes a junction where an activation reads it, where several
operators read it, or where it cannot be one wire of the next junction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import Tensor

from stars_deploy.errors import InputError
from stars_deploy.networks.base import IMAGE
from stars_deploy.networks.traced import JunctionArgs, Layer, Shape, WireArgs

POOLS = ("average", "max")
ADVICE = "express it with convolutions, BatchNorm, ReLU, pooling, adds and linear layers, retrain"


@dataclass(frozen=True)
class Value:
    """A sum of wires of one `shape`, and of the pre-activation of junction `carry`.

    flat: whether the module sees it flattened; `shape` is what it was before.
    """

    wires: tuple[WireArgs, ...]
    shape: Shape
    carry: int | None = None
    flat: bool = False

    @property
    def plain(self) -> bool:
        """Whether these are outputs of junctions (or the image), unchanged."""
        return self.carry is None and len(self.wires) == 1 and not self.wires[0].layers

    @property
    def last(self) -> Layer | None:
        """The last layer of a single wire."""
        single = self.carry is None and len(self.wires) == 1 and self.wires[0].layers
        return self.wires[0].layers[-1] if single else None

    def ending(self, *layers: Layer) -> Value:
        """Return this single wire with its last layer replaced by `layers`."""
        (wire,) = self.wires
        changed = WireArgs(sources=wire.sources, layers=(*wire.layers[:-1], *layers))
        return replace(self, wires=(changed,))


def output_of(index: int, shape: Shape) -> Value:
    """Return the output of a junction, or the image."""
    return Value((WireArgs(sources=(index,)),), shape)


def refuse(place: str, what: str, remedy: str = ADVICE) -> NoReturn:
    """Raise InputError: `what`, at `place` of the teacher, cannot be turned."""
    raise InputError(f"{place}: {what}; {remedy}")


@dataclass
class Wiring:
    """The junctions so far, the weights of their layers, and what a person should know."""

    junctions: list[JunctionArgs] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def name(self, place: str) -> str:
        """Return a name for a layer that no other layer has."""
        wanted = re.sub(r"\W", "_", place, flags=re.ASCII)
        taken = {key.split(".")[1] for key in self.tensors}
        number, name = 2, wanted
        while name in taken:
            number, name = number + 1, f"{wanted}_{number}"
        return name

    def keep(self, name: str, tensors: dict[str, Tensor | None]) -> None:
        """Keep the weights of a layer by their names in the built network."""
        for key, tensor in tensors.items():
            if tensor is not None:
                self.tensors[f"blocks.{name}.{key}"] = tensor.detach().clone()

    def junction(self, value: Value, place: str, **activation: object) -> int:
        """Make `value` a junction; return its index."""
        wires = tuple(self._reading_no_bare_image(wire, value.shape, place) for wire in value.wires)
        wires = self._scalable(wires, value, place)
        args = {"place": place, "wires": wires, "carry": value.carry, **activation}
        self.junctions.append(JunctionArgs.model_validate(args))
        self.shapes.append(value.shape)
        return len(self.junctions) - 1

    def sum(self, value: Value, place: str) -> Value:
        """Make `value` a junction without activation, if it is not the output of one already."""
        if value.plain:
            return value
        index = self.junction(value, place, activation="none")
        return replace(output_of(index, value.shape), flat=value.flat)

    def neuron(self, value: Value, place: str, slope: float, limit: float | None) -> Value:
        """Make `value` a junction with an activation, which can be shifted and scaled."""
        if not any(map(_has_conv, value.wires)):
            value = self.unchanged(value, place)
        index = self.junction(value, place, slope=slope, limit=limit)
        return replace(output_of(index, value.shape), flat=value.flat)

    def unchanged(self, value: Value, place: str) -> Value:
        """Return `value` behind a 1x1 convolution per channel that changes nothing.

        In the twin it holds what maps a pre-activation to a current.
        """
        return self.extended(value, self.pointwise(value.shape[0], place), place)

    def pointwise(self, channels: int, place: str, eps: float | None = None) -> Layer:
        """Return a convolution that passes every channel on; with `eps`, a BatchNorm follows."""
        name = self.name(place)
        self.keep(name, {"conv.weight": torch.ones(channels, 1, 1, 1)})
        return Layer(
            kind="conv",
            name=name,
            inputs=channels,
            outputs=channels,
            groups=channels,
            norm=eps is not None,
            eps=eps or 1e-5,
        )

    def extended(self, value: Value, layer: Layer, place: str) -> Value:
        """Return `layer` on `value`: in its wire where a wire can hold it.

        A wire is: pools, then one convolution, then pools; or pools, then a pad.
        """
        if not _room(value, layer):
            value = self.sum(value, place)
        (wire,) = value.wires
        size = layer.map_size(value.shape[1:])
        channels = layer.outputs if layer.kind in ("conv", "pad") else value.shape[0]
        wire = WireArgs(sources=wire.sources, layers=(*wire.layers, layer))
        return Value((wire,), (channels, *size), flat=value.flat)

    def added(self, values: Sequence[Value], place: str) -> Value:
        """Return the sum of values of one shape; outputs of junctions share a wire."""
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            refuse(place, f"adds maps of shapes {sorted(shapes)}, which are spread to one another")
        carries = [value.carry for value in values if value.carry is not None]
        if len(carries) > 1:
            refuse(place, "adds the inputs of two activations")
        plain = [wire for value in values for wire in value.wires if not wire.layers]
        others = [wire for value in values for wire in value.wires if wire.layers]
        sources = tuple(source for wire in plain for source in wire.sources)
        if len(set(sources)) < len(sources):
            refuse(place, "adds a value to itself", "write the factor into the weights before it")
        # Spikes that are added up share their gain; the image and sums have none to share.
        neurons = tuple(source for source in sources if self._fires(source))
        others += [WireArgs(sources=(source,)) for source in sources if source not in neurons]
        shared = (WireArgs(sources=neurons),) if neurons else ()
        carry = carries[0] if carries else None
        flat = any(value.flat for value in values)
        return Value((*others, *shared), values[0].shape, carry, flat)

    def concatenated(self, values: Sequence[Value], place: str) -> Value:
        """Return values side by side along channels: a sum, each among zeros."""
        sizes = {value.shape[1:] for value in values}
        flat = any(value.flat for value in values)
        if len(sizes) > 1 or (flat and sizes != {(1, 1)}):
            refuse(place, f"concatenates maps of sizes {sorted(sizes)}")
        total, first, parts = sum(value.shape[0] for value in values), 0, []
        for value in values:
            own = value.shape[0]
            pad = Layer(kind="pad", inputs=own, outputs=total, first=first)
            parts.append(self.extended(value, pad, place))
            first += own
        return replace(self.added(parts, place), flat=flat)

    def _fires(self, source: int) -> bool:
        return source != IMAGE and self.junctions[source].activation != "none"

    def _scalable(
        self, wires: Sequence[WireArgs], value: Value, place: str
    ) -> tuple[WireArgs, ...]:
        """Return the wires, of which no two without weights add to the same channel.

        What such a wire adds cannot be scaled in the twin, nor can what `carry` adds: next to
        another one it passes a convolution.
        """
        taken = set(range(value.shape[0])) if value.carry is not None else set()
        found = []
        for wire in wires:
            if not _has_conv(wire):
                own = _channels(wire, value.shape[0])
                if own & taken:
                    (wire,) = self.unchanged(Value((wire,), value.shape), place).wires
                else:
                    taken |= own
            found.append(wire)
        return tuple(found)

    def _reading_no_bare_image(self, wire: WireArgs, shape: Shape, place: str) -> WireArgs:
        """Return a wire whose image, if it reads one, passes a convolution."""
        if IMAGE not in wire.sources or _has_conv(wire):
            return wire
        if any(layer.kind == "pad" for layer in wire.layers):
            refuse(place, "the image itself is padded or concatenated")
        own = self.pointwise(shape[0], f"{place}_image")
        return WireArgs(sources=wire.sources, layers=(*wire.layers, own))


def _has_conv(wire: WireArgs) -> bool:
    return any(layer.kind == "conv" for layer in wire.layers)


def _channels(wire: WireArgs, channels: int) -> set[int]:
    pads = [layer for layer in wire.layers if layer.kind == "pad"]
    first, count = (pads[0].first, pads[0].inputs) if pads else (0, channels)
    return set(range(first, first + count))


def _room(value: Value, layer: Layer) -> bool:
    if value.carry is not None or len(value.wires) != 1:
        return False
    (wire,) = value.wires
    kinds = {old.kind for old in wire.layers}
    if "pad" in kinds or (layer.kind != "conv" and layer.kind not in (*POOLS, "pad")):
        return False
    return layer.kind in POOLS or "conv" not in kinds
