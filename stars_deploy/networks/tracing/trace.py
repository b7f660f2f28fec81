"""Trace a teacher: its graph by torch.fx, its shapes by running it, its network by `operators`.

What was traced must compute what the module computes; that is run, not assumed.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from stars_deploy.errors import InputError
from stars_deploy.networks.base import IMAGE
from stars_deploy.networks.traced import (
    Layer,
    Shape,
    TracedArgs,
    TracedNetwork,
)
from stars_deploy.networks.tracing.operators import (
    ACTIVATIONS,
    ADDS,
    NORMALISERS,
    OPERATORS,
    Call,
    module_handler,
    remedy_for,
    unchanged,
)
from stars_deploy.networks.tracing.wiring import Value, Wiring, output_of, refuse

PROOF_IMAGES = 4
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order


@dataclass(frozen=True)
class Traced:
    """A teacher as a network of ours.

    Attributes:
        network: the ANN, with the module's weights, in eval mode.
        args: the description that it is built from.
        notes: what is different in the twin, or was left out, in words.
        difference: largest difference of a logit from the module's, relative to the largest one.
    """

    network: TracedNetwork
    args: TracedArgs
    notes: tuple[str, ...]
    difference: float


def trace(module: nn.Module, shape: Shape, pooling: str = "window") -> Traced:
    """Return `module`, in eval mode, as a network that takes normalised images [B, C, H, W].

    Args:
        pooling: what the twin has for max pooling, see TracedArgs.

    Raises:
        InputError: an operator that a spiking twin cannot have, with its place and a remedy; code
            that cannot be traced; nothing to convert; or the result computes something else.
    """
    module = module.eval().float().cpu()
    graph = _symbolic(module)
    images = torch.randn(PROOF_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    record = _run(graph, images)
    _same_when_called(module, images, record)
    walk = _Walk(graph, record, shape)
    args, classes = walk.all(pooling)
    network = TracedNetwork(shape, classes, args, None)
    network.load_state_dict(network.state_dict() | walk.wiring.tensors)
    difference = _prove(network.eval(), images, record[walk.logits])
    return Traced(network, args, tuple(walk.wiring.notes), difference)


def _symbolic(module: nn.Module) -> fx.GraphModule:
    try:
        graph = fx.GraphModule(module, fx.Tracer(param_shapes_constant=True).trace(module))
        graph.graph.eliminate_dead_code()  # such as a head that is for training alone
        return graph
    except Exception as problem:  # whatever the person's code raises when it gets no tensors
        place = traceback.extract_tb(problem.__traceback__)
        own = [frame for frame in place if "/torch/" not in frame.filename.replace("\\", "/")]
        frame = (own or place)[-1]
        raise InputError(
            f"{type(module).__name__}: cannot be traced at line {frame.lineno} of "
            f"{frame.filename.rsplit('/', 1)[-1]} ({frame.line}): {_first_line(problem)}; what the "
            "network does must not depend on values or sizes of its input"
        ) from problem


@torch.no_grad()
def _run(graph: fx.GraphModule, images: Tensor) -> dict[fx.Node, Any]:
    """Return the value of every node for these images."""
    record: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            record[n] = value.clone() if isinstance(value, Tensor) else value
            return value

    try:
        Recorder(graph).run(images)
    except Exception as problem:  # torch's own complaint about a shape
        last = list(graph.graph.nodes)[len(record)]
        raise InputError(
            f"{_place(last)}: fails for images {tuple(images.shape[1:])}: {_first_line(problem)}; "
            "is --image-shape what the teacher was trained with?"
        ) from problem
    return record


@torch.no_grad()
def _same_when_called(module: nn.Module, images: Tensor, record: dict[fx.Node, Any]) -> None:
    """Raise InputError if the module itself gives other results than its graph."""
    result, found = list(record.values())[-1], module(images)
    if isinstance(found, Tensor) and not torch.isfinite(found).all():
        raise InputError(
            f"{type(module).__name__}: gives NaN or infinite values for normalised noise; are its "
            "weights damaged, or a variance of a BatchNorm negative?"
        )
    if isinstance(result, Tensor) and not (
        isinstance(found, Tensor)
        and found.shape == result.shape
        and torch.allclose(found, result, rtol=1e-4, atol=1e-5 * float(result.abs().max()))
    ):
        raise InputError(
            f"{type(module).__name__}: called with images it gives other results than its forward "
            "does in tracing (dropout that is always on, a hook, a __call__ of its own, a state "
            "that it keeps); write what it computes into forward"
        )


def _first_line(problem: Exception) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__


def _place(node: fx.Node) -> str:
    """Return where a node is in the module: `layer1.0.conv1`, or the call's name."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name}" if inside else node.name


def _times(reader: fx.Node, node: fx.Node) -> int:
    """Return how often a reader takes a node: twice in x + x."""
    taken: list[fx.Node] = []
    fx.node.map_arg((reader.args, reader.kwargs), taken.append)
    return taken.count(node)


class _Walk:
    """Goes through the graph once, in order."""

    def __init__(self, graph: fx.GraphModule, record: dict[fx.Node, Any], shape: Shape) -> None:
        self._graph = graph
        self._record = record
        self._shape = shape
        self._values: dict[fx.Node, Value] = {}
        self.wiring = Wiring()
        self.logits: fx.Node

    def all(self, pooling: str) -> tuple[TracedArgs, int]:
        """Return the description of the whole network, and its number of classes."""
        self._drop_what_does_nothing()
        (output,) = (node for node in self._graph.graph.nodes if node.op == "output")
        self.logits = self._before_softmax(output.args[0])
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = output_of(IMAGE, self._shape)
            elif node.op != "output" and node not in self._values and self._is_map(node):
                self._values[node] = self._settled(node, self._value(node))
        return self._finished(self._values[self.logits], pooling)

    def _is_map(self, node: fx.Node) -> bool:
        """Say whether a node computes something of the image; sizes and weights do not."""
        return isinstance(self._record[node], Tensor) and node.op != "get_attr"

    def _drop_what_does_nothing(self) -> None:
        """Take dropout and the like out, so that it is seen who really reads a value."""
        for node in list(self._graph.graph.nodes):
            handler = self._handler(node)
            if handler is not None and handler[0] is unchanged:
                self.wiring.note(f"{_place(node)}: does nothing after training, left out")
                node.replace_all_uses_with(node.all_input_nodes[0])
                self._graph.graph.erase_node(node)

    def _handler(self, node: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
        if node.op == "call_module":
            return module_handler(self._graph.get_submodule(str(node.target)))
        if node.op not in ("call_function", "call_method"):
            return None
        if getattr(node.target, "__name__", "") == "stochastic_depth":  # of torchvision
            return unchanged, ()
        found = OPERATORS.get(node.target)
        return None if found is None else (found, ())

    def _value(self, node: fx.Node) -> Value:
        place = _place(node)
        handler = self._handler(node)
        if handler is None:
            what = self._what(node)
            refuse(place, f"{what} cannot be turned into a spiking form", remedy_for(what))
        function, more = handler
        args, options = fx.node.map_arg((node.args, node.kwargs), self._argument)
        options = dict(options)
        first = (options.pop("input"),) if "input" in options else ()
        try:
            result: Value = function(Call(place, self.wiring), *first, *args, *more, **options)
        except (TypeError, AttributeError, IndexError, ValueError) as problem:
            what = self._what(node)
            refuse(place, f"{what} with arguments that are not understood ({problem})")
        return result

    def _argument(self, node: fx.Node) -> Any:
        """Return the Value of a node, or what it was when it is no map of the image."""
        return self._values.get(node, self._record[node])

    def _what(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self._graph.get_submodule(str(node.target))).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _settled(self, node: fx.Node, value: Value) -> Value:
        """Make a value that several operators read the output of a junction.

        Read by one activation and by adds, it is the input of that activation, which junctions can
        carry on (a membrane shortcut).
        """
        readers = [
            user
            for user in node.users
            if user.op == "output" or self._is_map(user)
            for _ in range(_times(user, node))
        ]
        if value.plain or len(readers) < 2:
            return value
        bends = [user for user in readers if self._bends(user)]
        adds = [user for user in readers if user.target in ADDS]
        alone = len(bends) == 1 and len(bends) + len(adds) == len(readers)
        if not alone or value.carry is not None:
            return self.wiring.sum(value, _place(node))
        self._values[node] = value
        fired = self._value(bends[0])
        if not fired.plain:  # never negative, so that a ReLU changes nothing
            return self.wiring.sum(value, _place(node))
        self._values[bends[0]] = fired
        (index,) = fired.wires[0].sources
        return Value((), value.shape, carry=index, flat=value.flat)

    def _bends(self, node: fx.Node) -> bool:
        handler = self._handler(node)
        return handler is not None and handler[0] in ACTIVATIONS.values()

    def _before_softmax(self, result: Any) -> fx.Node:
        if not isinstance(result, fx.Node) or not isinstance(self._record[result], Tensor):
            raise InputError("the teacher returns several values; expected its logits [B, K] alone")
        function = result.target
        if result.op == "call_module":
            kind = type(self._graph.get_submodule(str(function)))
            function = "softmax" if kind in (nn.Softmax, nn.LogSoftmax) else function
        alone = len(result.users) == 1 and self._along_classes(result)
        if function in NORMALISERS and alone:
            self.wiring.note(f"{_place(result)}: left out, the student learns the logits before it")
            (logits,) = result.all_input_nodes
            result.replace_all_uses_with(logits)
            self._graph.graph.erase_node(result)
            return self._before_softmax(logits)
        return result

    def _along_classes(self, node: fx.Node) -> bool:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if node.op == "call_module":
            dim = getattr(self._graph.get_submodule(str(node.target)), "dim", None)
        return dim in (None, 1, -1)

    def _finished(self, value: Value, pooling: str) -> tuple[TracedArgs, int]:
        wiring, logits = self.wiring, self._record[self.logits]
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise InputError(
                f"the teacher returns a tensor {tuple(logits.shape)}; expected logits [B, K] of at "
                "least 2 classes"
            )
        if all(junction.activation == "none" for junction in wiring.junctions):
            raise InputError(
                "nothing was converted: the teacher has no activation of the ReLU family, of which "
                "neurons could be made"
            )
        sources, head = self._head(value, logits.shape[1])
        self._note_added_norms()
        args = TracedArgs(
            junctions=tuple(wiring.junctions),
            readout=sources,
            head=head,
            stage_ends=_stage_ends(wiring),
            pooling=pooling,  # type: ignore[arg-type]  # checked by the model
        )
        return args, int(logits.shape[1])

    def _head(self, value: Value, classes: int) -> tuple[tuple[int, ...], tuple[Layer, ...]]:
        """Return the junctions that the last linear layer reads, and the pools before it."""
        last, tensors = value.last, self.wiring.tensors
        if last is not None and last.dense and not last.norm:
            (wire,) = value.wires
            if min(wire.sources) >= 0:
                weight = tensors.pop(f"blocks.{last.name}.conv.weight").flatten(1)
                bias = tensors.pop(f"blocks.{last.name}.conv.bias", torch.zeros(classes))
                tensors.update({"fc.weight": weight, "fc.bias": bias})
                return wire.sources, wire.layers[:-1]
        total = self.wiring.sum(value, "output")
        tensors.update({"fc.weight": torch.eye(classes), "fc.bias": torch.zeros(classes)})
        self.wiring.note("output: gets a linear layer that changes nothing, as the read-out")
        return total.wires[0].sources, ()

    def _note_added_norms(self) -> None:
        bare = [
            layer.name
            for junction in self.wiring.junctions
            for wire in junction.wires
            for layer in wire.layers
            if layer.kind == "conv" and not layer.norm
        ]
        if bare:
            names = ", ".join(bare[:5]) + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
            self.wiring.note(f"{names}: without BatchNorm; the twin gets one there, to learn")


def _stage_ends(wiring: Wiring) -> tuple[int, ...]:
    """Return the activations behind which the size of maps changes, and the last one of maps."""
    neurons = [i for i, junction in enumerate(wiring.junctions) if junction.activation != "none"]
    maps = [i for i in neurons if not _dense(wiring, i)] or neurons
    ends = [
        one for one, other in pairwise(maps) if wiring.shapes[one][1:] != wiring.shapes[other][1:]
    ]
    return (*ends, maps[-1])


def _dense(wiring: Wiring, index: int) -> bool:
    layers = [layer for wire in wiring.junctions[index].wires for layer in wire.layers]
    return any(layer.dense for layer in layers)


@torch.no_grad()
def _prove(network: TracedNetwork, images: Tensor, expected: Tensor) -> float:
    """Return the largest relative difference of logits; InputError if it is not rounding."""
    found = network(images)
    largest = float(expected.abs().max().clamp(min=1e-6))
    difference = float((found - expected).abs().max()) / largest
    if not difference <= TOLERANCE:
        raise InputError(
            f"the traced network differs from the teacher by {difference:.1e} of its largest logit "
            f"(expected at most {TOLERANCE:g}): does an operation in place change a value that is "
            "read again? Write it without inplace=True"
        )
    return difference
