"""NIR to ONNX: all T steps in one graph, or one step whose state goes in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import nir
import numpy as np
import onnx
from onnx import TensorProto, helper

from stars_deploy import __version__
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import (
    SPIKING,
    STATEFUL,
    output_name,
    sources,
    spiking_nodes,
    stateful_nodes,
    topological_order,
)
from stars_deploy.graph.problems import require_runnable
from stars_deploy.targets.onnx_ops import (
    Builder,
    declare,
    emit_normalised,
    emit_operator,
    emit_potential,
    emit_reset,
    emit_spike,
    initial_state,
    parameter,
)
from stars_deploy.targets.onnx_options import DEFAULT, OnnxOptions


def build_onnx(graph: nir.NIRGraph, options: OnnxOptions = DEFAULT) -> onnx.ModelProto:
    """Return the model of all T steps; what no neuron has touched yet is computed once.

    Input: image float32 [N, C, H, W] in [0, 1]. Outputs: logits float32 [N, K], mean over T;
    spikes.<node> int32 [N, ...], spikes of each neuron summed over T.
    Raises: GraphError when the graph cannot be run.
    """
    require_runnable(graph, "graph")
    to, order = Builder(options.weights), topological_order(graph)
    static = _static_nodes(graph)
    shared: dict[str, str] = {}
    _emit(to, graph, [name for name in order if name in static], shared, {}, "")
    state = {
        name: parameter(to, f"{name}.v_start", initial_state(graph.nodes[name]))
        for name in stateful_nodes(graph)
    }
    logits: list[str] = []
    counts: dict[str, str] = {}
    for t in range(metadata_of(graph).T):
        values = dict(shared)
        fires = _emit(to, graph, [n for n in order if n not in static], values, state, f".t{t}")
        logits.append(values[output_name(graph)])
        for name, value in fires.items():
            counts[name] = _add_count(to, name, counts.get(name), value, t)
    _emit_mean(to, logits)
    for name, count in counts.items():
        to.add("Identity", [count], f"spikes.{name}")
    return _model(graph, to, options.opset, [], TensorProto.INT32)


def build_step_onnx(graph: nir.NIRGraph, options: OnnxOptions = DEFAULT) -> onnx.ModelProto:
    """Return the model of one step; run it T times from the initial state and average the logits.

    Inputs: image float32 [N, C, H, W] in [0, 1]; v.<node> float32, membrane potentials (first
    step: the model's metadata `initial_state`). Outputs: logits float32 [N, K] of this step;
    spikes.<node> uint8; v_next.<node> float32.
    Raises: GraphError when the graph cannot be run.
    """
    require_runnable(graph, "graph")
    to = Builder(options.weights)
    stateful = stateful_nodes(graph)
    state = {name: f"v.{name}" for name in stateful}
    values: dict[str, str] = {}
    fires = _emit(to, graph, topological_order(graph), values, state, "")
    _emit_mean(to, [values[output_name(graph)]])
    for name, value in fires.items():
        to.add("Cast", [value], f"spikes.{name}", to=TensorProto.UINT8)
    for name in stateful:
        to.add("Identity", [state[name]], f"v_next.{name}")
    return _model(graph, to, options.opset, stateful, TensorProto.UINT8)


def _static_nodes(graph: nir.NIRGraph) -> set[str]:
    """Nodes whose value is the same at every step: no neuron on any path to them."""
    static: set[str] = set()
    for name in topological_order(graph):
        neuron = isinstance(graph.nodes[name], (*STATEFUL, *SPIKING))
        if not neuron and static.issuperset(sources(graph, name)):
            static.add(name)
    return static


def _emit(
    to: Builder,
    graph: nir.NIRGraph,
    names: Iterable[str],
    values: dict[str, str],
    state: dict[str, str],
    step: str,
) -> dict[str, str]:
    """Append the nodes `names` for one step; `values` and `state` move on to what they become.

    Returns the boolean value of each spiking node.
    """
    shapes, metadata = output_shapes(graph), metadata_of(graph)
    fires: dict[str, str] = {}
    for name in names:
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            values[name] = emit_normalised(to, metadata.mean, metadata.std, len(shapes[name]))
            continue
        x = _emit_sum(to, name, [values[source] for source in sources(graph, name)], step)
        if isinstance(node, nir.Output):
            values[name] = x
        elif isinstance(node, (*STATEFUL, *SPIKING)):
            h = emit_potential(to, name, node, x, state.get(name, ""), step, metadata.dt)
            values[name] = state[name] = h
            if isinstance(node, SPIKING):
                fires[name] = emit_spike(to, name, node, h, step)
                cast = {"to": TensorProto.FLOAT}
                values[name] = to.add("Cast", [fires[name]], f"{name}.spikes{step}", **cast)
                if isinstance(node, STATEFUL):
                    state[name] = emit_reset(to, name, node, fires[name], h, f"{name}.v{step}")
        else:
            values[name] = emit_operator(to, name, node, x, f"{name}{step}", shapes[name])
    return fires


def _emit_sum(to: Builder, name: str, given: list[str], step: str) -> str:
    """Several edges into a node add up."""
    return given[0] if len(given) == 1 else to.add("Sum", given, f"{name}.sum{step}")


def _emit_mean(to: Builder, steps: list[str]) -> None:
    if len(steps) == 1:
        to.add("Identity", steps, "logits")
    else:
        total = to.add("Sum", steps, "logits.total")
        to.add("Div", [total, to.constant("logits.steps", len(steps))], "logits")


def _add_count(to: Builder, name: str, count: str | None, fires: str, t: int) -> str:
    spikes = to.add("Cast", [fires], f"{name}.counted.t{t}", to=TensorProto.INT32)
    return to.add("Add", [count, spikes], f"{name}.count.t{t}") if count else spikes


def _model(
    graph: nir.NIRGraph, to: Builder, opset: int, state: list[str], spikes: int
) -> onnx.ModelProto:
    shapes = output_shapes(graph)
    inputs = [declare("image", TensorProto.FLOAT, input_shape(graph))]
    inputs += [declare(f"v.{name}", TensorProto.FLOAT, shapes[name]) for name in state]
    outputs = [declare("logits", TensorProto.FLOAT, shapes[output_name(graph)])]
    outputs += [declare(f"spikes.{name}", spikes, shapes[name]) for name in spiking_nodes(graph)]
    outputs += [declare(f"v_next.{name}", TensorProto.FLOAT, shapes[name]) for name in state]
    body = helper.make_graph(to.nodes, "stars_deploy", inputs, outputs, [*to.constants.values()])
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        body,
        opset_imports=opsets,
        # The oldest file format that this operator set may stand in, for the oldest runtimes.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="stars-deploy",
        producer_version=__version__,
    )
    helper.set_model_props(model, _properties(graph))
    return model


def _properties(graph: nir.NIRGraph) -> dict[str, str]:
    """What a user of the model needs besides its tensors, as JSON texts."""
    metadata = metadata_of(graph)
    start = {name: _plain(initial_state(graph.nodes[name])) for name in stateful_nodes(graph)}
    properties = {
        "T": metadata.T,
        "classes": list(metadata.classes),
        "initial_state": start,
        "nodes": spiking_nodes(graph),
    }
    return {key: json.dumps(value) for key, value in properties.items()}


def _plain(values: Any) -> Any:
    """One number for a uniform array, else a flat list in C order."""
    array = np.asarray(values, np.float64).reshape(-1)
    return float(array[0]) if (array == array[0]).all() else array.tolist()
