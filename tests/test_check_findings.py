"""check: every refusal of the lowering is a finding, all of them at once, and nothing raises."""

import dataclasses
import itertools

import nir
import numpy as np
import pytest
import random_networks
import slow_loihi
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered_shapes import Document

from stars_deploy.config.profile import load_profile, parse_profile
from stars_deploy.errors import DoesNotFit, GraphError
from stars_deploy.graph.metadata import GraphMetadata, with_metadata
from stars_deploy.targets.findings import LIMIT_CODES
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.validation.check import _with_graded_input, check, examine, exit_code

LOIHI1, LOIHI2 = load_profile("loihi1"), load_profile("loihi2")


def small(seed=1, **options):
    options = {"pools": False, "global_pool": False, "blocks": 2, "steps": (4, 4)} | options
    return random_networks.random_graph(seed, **options)


def rebuilt(graph, nodes=None, edges=None):
    return nir.NIRGraph(
        {**graph.nodes, **(nodes or {})},
        graph.edges if edges is None else edges,
        metadata=graph.metadata,
        type_check=False,
    )


def field(node, name, value, index=slice(None)):
    def change(graph):
        getattr(graph.nodes[node], name)[index] = value
        return graph

    return change


def without(graph, *nodes):
    kept = {name: node for name, node in graph.nodes.items() if name not in nodes}
    return nir.NIRGraph(kept, graph.edges, metadata=graph.metadata, type_check=False)


def without_leak(graph):
    nodes = {
        name: nir.IF(np.ones(node.r.shape), node.v_threshold)
        for name, node in graph.nodes.items()
        if isinstance(node, nir.LIF)
    }
    return rebuilt(graph, nodes)


def one_dimensional(graph):
    """A Conv1d on the rows of lif2's maps."""
    shape = graph.nodes["lif2"].v_threshold.shape
    flat = (shape[0], int(np.prod(shape[1:])))
    nodes = {
        "rows": nir.Flatten({"input": np.array(shape)}, 1, 2),
        "extra": nir.Conv1d(flat[1], np.ones((2, shape[0], 1)), 1, 0, 1, 1, np.zeros(2)),
        "flatten": nir.Flatten({"input": np.array((2, flat[1]))}, 0, -1),
        "fc": nir.Affine(np.ones((2, 2 * flat[1])), np.zeros(2)),
        "output": nir.Output({"output": np.array((2,))}),
    }
    edges = [edge for edge in graph.edges if edge[0] != "lif2" and edge[1] != "flatten"]
    edges += [("lif2", "rows"), ("rows", "extra"), ("extra", "flatten")]
    return rebuilt(graph, nodes, edges)


def leaky_layer(graph):
    node = graph.nodes["lif1"]
    return rebuilt(graph, {"lif1": nir.LI(node.tau, node.r, node.v_leak)})


def cuba(graph):
    node = graph.nodes["lif1"]
    values = (node.tau, node.tau, node.r, node.v_leak, node.v_threshold)
    return rebuilt(graph, {"lif1": nir.CubaLIF(*values)})


def border_pool(graph):
    """A pool of 2 on an odd map before a padded convolution, too large for a matrix."""
    nodes = {
        "conv1": nir.Conv2d((41, 41), np.ones((4, 1, 1, 1)), 1, 0, 1, 1, np.zeros(4)),
        "lif1": random_networks.lif((4, 41, 41)),
        "pool1": nir.AvgPool2d(np.array((2, 2)), np.array((2, 2)), np.array((0, 0))),
        "conv2": nir.Conv2d((20, 20), np.ones((4, 4, 3, 3)), 1, 1, 1, 1, np.zeros(4)),
        "lif2": random_networks.lif((4, 20, 20)),
        "flatten": nir.Flatten({"input": np.array((4, 20, 20))}, 0, -1),
        "fc": nir.Affine(np.ones((2, 1600)), np.zeros(2)),
        "output": nir.Output({"output": np.array((2,))}),
        "input": nir.Input({"input": np.array((1, 41, 41))}),
    }
    names = ["input", "conv1", "lif1", "pool1", "conv2", "lif2", "flatten", "fc", "output"]
    built = nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    return with_metadata(built, GraphMetadata(T=2, mean=(0.5,), std=(0.5,)))


REFUSALS = {
    "v_reset": (field("lif1", "v_reset", -0.5), "neuron", "lif1"),
    "v_leak": (field("lif2", "v_leak", 0.1), "neuron", "lif2"),
    "threshold per neuron": (field("lif1", "v_threshold", 2.0, (0, 0, 0)), "neuron", "lif1"),
    "gain per neuron": (field("lif1", "r", 2.0, (0, 0, 0)), "neuron", "lif1"),
    "tau per neuron": (field("lif1", "tau", 5e-4, (0, 0, 0)), "neuron", "lif1"),
    "tau below a step": (field("lif1", "tau", 0.5e-4), "neuron", "lif1"),
    "tau without end": (field("lif1", "tau", 1.0), "neuron", "lif1"),
    "threshold zero": (field("lif1", "v_threshold", 0.0), "neuron", "lif1"),
    "not a number": (field("conv1", "weight", np.nan, (0, 0, 0, 0)), "value", "conv1"),
    "unsupported by the profile": (one_dimensional, "unsupported", "extra"),
    "potentials between layers": (leaky_layer, "structure", "lif1"),
    "unsupported anywhere": (cuba, "unsupported", "lif1"),
    "pool at a border": (border_pool, "composition", "pool1"),
    "dangling edge": (lambda g: without(g, "lif1"), "structure", "conv1"),
}


@pytest.mark.parametrize(("change", "code", "node"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_code_and_node_and_lowering_agrees(change, code, node):
    graph = change(small())
    found = check(graph, LOIHI2)
    errors = [f for f in found if f.severity == "error"]
    assert (code, node) in {(f.code, f.node) for f in errors}
    assert all(f.message and f.remedy for f in errors)
    assert exit_code(found) == 2
    with pytest.raises(GraphError, match=node):
        lower(graph, LOIHI2)


def test_a_good_graph_has_no_errors_on_loihi2_and_on_the_reference():
    for seed in range(5):
        graph = small(seed)
        assert exit_code(check(graph, LOIHI2)) == 0
        assert check(graph, load_profile("reference")) == []


def test_all_problems_are_found_at_once():
    graph = field("lif1", "v_leak", 0.1)(border_pool(None))
    graph = field("lif2", "v_reset", -0.5)(graph)
    found = {(f.code, f.node) for f in check(graph, LOIHI2)}
    assert {("neuron", "lif1"), ("neuron", "lif2"), ("composition", "pool1")} <= found


def test_loihi1_leaves_the_image_to_the_host():
    found = check(small(), LOIHI1)
    assert exit_code(found) == 0
    (netx,) = [f for f in found if f.code == "netx"]
    assert "host_bias" in netx.message
    assert [f.severity for f in found if f.code == "host_bias"] == ["info"]


def test_loihi1_does_not_fit_where_a_bias_cannot_hold_the_image():
    graph = small()
    graph.nodes["conv1"].weight[:] *= 1e5
    found = check(graph, LOIHI1)
    assert exit_code(found) == 4
    assert (found[0].code, found[0].node) == ("scale_range", "lif1")
    assert "bias mantissa, with the image in it" in found[0].message
    with pytest.raises(DoesNotFit, match=r"lif1: .*bias mantissa"):
        lower(graph, LOIHI1)


def test_what_the_host_computes_takes_no_core():
    """A first layer too wide for any core's synapses is none of their business on loihi1."""
    rng = np.random.default_rng(0)
    shape = (3, 80, 80)
    nodes = {
        "input": nir.Input({"input": np.array(shape)}),
        "flatten": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "fc1": nir.Linear(rng.normal(0, 0.01, (4, 19200))),
        "lif1": random_networks.lif((4,), 2.0, 1.0),
        "fc": nir.Linear(rng.normal(0, 1, (2, 4))),
        "output": nir.Output({"output": np.array((2,))}),
    }
    edges = list(itertools.pairwise(nodes))
    metadata = GraphMetadata(T=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    graph = with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)
    assert "input_axons" not in {f.code for f in check(graph, LOIHI1)}
    assert exit_code(check(graph, LOIHI1)) == 0
    graded = LOIHI1.model_dump(mode="json", by_alias=True, exclude_none=True)
    graded["arithmetic"]["message_bits"] = {"value": 8, "source": "test", "confidence": "choice"}
    assert "input_axons" in {f.code for f in check(graph, parse_profile(graded, "test"))}


def tightened(**limits):
    document = LOIHI2.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, value in limits.items():
        document["limits"][name] = {"value": value, "source": "test", "confidence": "choice"}
    return parse_profile(document, "test")


@pytest.mark.parametrize(
    ("limits", "code", "node"),
    [
        ({"cores_per_chip": 1}, "cores", "lif1"),
        ({"synaptic_memory_per_core_bit": 64}, "synaptic_memory", "fc"),
        ({"input_axons_per_core": 3}, "input_axons", "fc"),
    ],
)
def test_limits_of_cores_are_exit_code_4(limits, code, node):
    found = check(small(), tightened(**limits))
    errors = {f.code: f for f in found if f.severity == "error"}
    assert code in errors and code in LIMIT_CODES
    assert errors[code].value > errors[code].limit
    assert node in {f.node for f in found if f.code == code}
    assert exit_code(found) == 4


def test_too_many_cores_say_what_would_hold_the_network():
    found = check(small(), tightened(neurons_per_core=10, cores_per_chip=20))
    (cores,) = [item for item in found if item.code == "cores"]
    assert cores.severity == "error" and cores.node == "lif1" and cores.limit == 20
    assert "of the 20 cores of loihi2" in cores.message and "for lif1" in cores.message
    assert "loihi2-kapoho-point (960 cores) holds it" in cores.remedy
    assert "halve the channels of lif1" in cores.remedy
    assert "convolution_sharing" not in cores.remedy  # it is declared already


def test_a_system_that_is_too_small_is_not_recommended():
    """128 channels of 256x256 are 1024 cores of 8192 neurons: more than Kapoho Point has."""
    from stars_deploy.simulation.placement.place import place
    from stars_deploy.validation.placement import placement_findings

    built = Document((1, 256, 256))
    built.conv("input", "a", 128, kernel=1)
    placement = place(built.document, built.arrays, LOIHI2)
    found = placement_findings(placement, built.document, built.arrays, LOIHI2)
    (cores,) = [item for item in found if item.code == "cores"]
    assert cores.value == 1024 and "hala-point (140544 cores) holds it" in cores.remedy
    assert "kapoho" not in cores.remedy


def test_sharing_is_offered_where_it_is_not_declared():
    content = LOIHI2.model_dump(mode="json", by_alias=True, exclude_none=True)
    del content["limits"]["convolution_sharing"]
    note = {"source": "test", "confidence": "choice"}
    content["limits"]["synaptic_memory_per_core_bit"] = {"value": 20000, **note}
    content["limits"]["cores_per_chip"] = {"value": 3, **note}
    (cores,) = [f for f in check(small(), parse_profile(content, "t")) if f.code == "cores"]
    assert "declare convolution_sharing where it holds (3 cores)" in cores.remedy
    assert not any(f.code == "limits_inferred" for f in check(small(), parse_profile(content, "t")))
    assert any(f.code == "limits_inferred" for f in check(small(), LOIHI2))


def test_every_limit_of_a_placement_is_worded():
    """Each resource becomes a finding with layer, need, limit and remedy, and exit code 4."""
    from stars_deploy.simulation.placement.place import Misfit, place
    from stars_deploy.validation import placement as wording

    network = lower(small(), LOIHI2)
    fitting = place(network.document, network.arrays, LOIHI2)
    fields = [f"convolution_{field}" for field in wording._FIELDS]
    for resource in (*wording._TEXTS, *fields):
        limit = (1, 2) if resource == "convolution_stride" else 7
        misfit = Misfit(resource, "lif2", 9, limit, "conv2")
        broken = dataclasses.replace(fitting, misfits=(misfit,))
        (found, *_) = wording.placement_findings(broken, network.document, network.arrays, LOIHI2)
        assert found.severity == "error" and found.code in LIMIT_CODES, resource
        assert found.node == "lif2" and found.value == 9 and found.remedy
        assert "{" not in found.message
        named = any(word in found.message for word in ("lif2", "conv2"))
        assert named and ("loihi2" in found.message), found.message


def test_a_chip_without_graded_input_is_placed_without_its_image():
    examined = examine(small(), LOIHI1)
    assert exit_code(examined.findings) == 0
    placed = {entry.name: entry for entry in examined.placement.populations}
    assert list(placed) == ["lif1", "lif2", "fc"]
    assert placed["lif1"].fullest("synaptic_memory_bit") == 0
    assert placed["lif1"].fullest("input_axons") == 0 < placed["lif2"].fullest("input_axons")
    assert examine(border_pool(None), LOIHI1).placement is None
    assert examine(small(), load_profile("reference")).placement is None


def if_chain():
    """Input 1x6x6 -> 3x3 convolution, padded -> IF -> 3 outputs."""
    rng = np.random.default_rng(0)
    conv = nir.Conv2d((6, 6), rng.normal(size=(4, 1, 3, 3)), 1, 1, 1, 1, rng.normal(size=4))
    nodes = {
        "input": nir.Input(np.array([1, 6, 6])),
        "conv1": conv,
        "if1": nir.IF(np.ones((4, 6, 6)), np.ones((4, 6, 6))),
        "flatten": nir.Flatten({"input": np.array((4, 6, 6))}, 0, -1),
        "fc": nir.Affine(rng.normal(size=(3, 144)), rng.normal(size=3)),
        "output": nir.Output(np.array([3])),
    }
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(nodes)), type_check=False)
    return with_metadata(graph, GraphMetadata(T=4, mean=(0.5,), std=(0.5,)))


def test_cores_of_one_layer_each_and_no_leak():
    """Speck: LIF is refused by name, IF is placed, the image cannot be sent."""
    speck = load_profile("speck2f")
    leaky = check(small(), speck)
    assert {f.node for f in leaky if f.code == "unsupported"} == {"lif1", "lif2"}
    assert exit_code(leaky) == 2
    examined = examine(if_chain(), speck)
    assert exit_code(examined.findings) == 4
    assert {f.code for f in examined.findings if f.severity == "error"} == {"input_messages"}
    (first, last) = examined.placement.populations
    assert (first.name, last.name) == ("if1", "fc")
    # By the formulas of sinabs: 1 * 16 * 4 and 4 * 64 * 4 weights, 4 * 8 * 8 and 3 states.
    assert first.fullest("synaptic_memory_bit") == 64 * 8 and first.fullest("neurons") == 256
    assert last.fullest("synaptic_memory_bit") == 1024 * 8 and last.fullest("neurons") == 3
    assert not any(f.code == "netx" for f in examined.findings)


def test_a_stride_that_the_chip_lacks_is_named():
    graph = if_chain()
    graph.nodes["conv1"].stride = (3, 3)
    for node, shape in (("if1", (4, 2, 2)),):
        graph.nodes[node] = nir.IF(np.ones(shape), np.ones(shape))
    graph.nodes["flatten"] = nir.Flatten({"input": np.array((4, 2, 2))}, 0, -1)
    graph.nodes["fc"] = nir.Affine(np.ones((3, 16)), np.zeros(3))
    found = check(rebuilt(graph), load_profile("speck2f"))
    (stride,) = [f for f in found if f.code == "convolution_limit"]
    assert stride.message == "conv1 needs a stride of 3, speck2f computes only 1, 2, 4, 8"
    assert (stride.node, stride.value, stride.limit) == ("if1", 3, "1, 2, 4, 8")


@pytest.mark.parametrize("seed", range(4))
def test_integers_for_the_if_chip_stay_in_its_ranges(seed):
    """8-bit weights and biases, 16-bit states with sign, no decay, whatever the image."""
    graph = without_leak(small(seed))
    network = analyse(graph, _with_graded_input(load_profile("speck2f"))).network
    document, arrays = network.document, network.arrays
    for connection in document["connections"]:
        weight = arrays[connection["weight_key"]]
        assert weight.min() >= -128 and weight.max() <= 127
    for entry in document["populations"]:
        assert 0 < entry["vth"] < 1 << 15 and entry["dv"] == 0
        if entry["bias_key"]:
            assert np.abs(arrays[entry["bias_key"]]).max() < 1 << 7
    shape = tuple(reversed(document["input"]["shape_whc"]))
    images = np.random.default_rng(seed).integers(0, 256, (3, *shape)).astype(np.uint8)
    images[0], images[1] = 0, 255
    spikes, potentials, _ = slow_loihi.run(document, arrays, images)
    for potential in potentials.values():
        assert not (potential % 64).any()  # a common factor of the engine, none of the chip
        assert np.abs(potential // 64).max() < 1 << 15
    assert any(train.any() for train in spikes.values())


def test_cores_are_counted_from_neurons():
    graph = small()
    shapes = {n: node.v_threshold.shape for n, node in graph.nodes.items() if n.startswith("lif")}
    expected = sum(-(-int(np.prod(shape)) // 10) for shape in shapes.values())
    expected += -(-graph.nodes["fc"].bias.size // 10)
    (finding,) = [f for f in check(graph, tightened(neurons_per_core=10)) if f.code == "cores"]
    assert finding.value == expected


def test_unknown_limits_are_said_to_be_unchecked():
    (finding,) = [f for f in check(small(), LOIHI2) if f.code == "limits_unknown"]
    assert "input_axons_per_core" in finding.message and finding.severity == "info"
    assert "cores_per_chip" not in finding.message  # loihi2 says it


@pytest.mark.parametrize(
    "limit", ["cores_per_chip", "neurons_per_core", "synaptic_memory_per_core_bit"]
)
def test_a_size_that_a_profile_leaves_out_is_said_to_be_unchecked(limit):
    content = LOIHI2.model_dump(by_alias=True)
    content["limits"][limit] = None
    profile = type(LOIHI2).model_validate(content)
    (finding,) = [f for f in check(small(), profile) if f.code == "limits_unknown"]
    assert limit in finding.message


def test_a_chip_with_kinds_of_cores_says_their_sizes():
    found = check(without_leak(small()), load_profile("speck2f"))
    (finding,) = [f for f in found if f.code == "limits_unknown"]
    assert "cores_per_chip" not in finding.message


@pytest.mark.parametrize(("steps", "warned"), [(1, False), (3, True), (4, False), (6, True)])
def test_t_that_is_no_power_of_two_is_a_warning(steps, warned):
    codes = {f.code for f in check(small(steps=(steps, steps)), LOIHI2) if f.severity == "warning"}
    assert ("reset_interval" in codes) == warned


def test_every_population_says_which_integers_it_got():
    graph = small()
    found = [f for f in check(graph, LOIHI2) if f.code == "integers"]
    populations = [e["name"] for e in lower(graph, LOIHI2).document["populations"]]
    assert [f.node for f in found] == populations
    assert all(0 < f.value < f.limit == 131072 for f in found)


def test_errors_come_first():
    found = check(field("lif1", "v_reset", 1.0)(small(steps=(3, 3))), LOIHI2)
    order = ["error", "warning", "info"]
    ranks = [order.index(f.severity) for f in found]
    assert ranks == sorted(ranks)


def _vandalise(graph, rng):
    """Damage one random thing of a graph: values, shapes, edges, nodes or metadata."""
    name = str(rng.choice(sorted(graph.nodes)))
    node = graph.nodes[name]
    kind = int(rng.integers(6))
    if kind == 0:
        fields = [f for f in ("weight", "bias", "tau", "r", "v_threshold") if hasattr(node, f)]
        if fields:
            chosen = str(rng.choice(fields))
            bad = rng.choice([np.nan, np.inf, 0.0, -1.0, 1e30, 1e-30])
            setattr(node, chosen, np.full_like(getattr(node, chosen), bad, dtype=float))
    elif kind == 1:
        for f in ("weight", "v_threshold"):
            if hasattr(node, f):
                setattr(node, f, getattr(node, f)[..., :1])
    elif kind == 2 and graph.edges:
        graph.edges.remove(graph.edges[int(rng.integers(len(graph.edges)))])
    elif kind == 3:
        ends = [str(x) for x in rng.choice(sorted(graph.nodes), 2)]
        graph.edges.append((ends[0], ends[1]))
    elif kind == 4:
        del graph.nodes[name]
    else:
        key = str(rng.choice(sorted(graph.metadata)))
        graph.metadata[key] = rng.choice([np.nan, -1.0, 0.0, 1e9])


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_no_damaged_graph_makes_check_raise(seed, damages):
    rng = np.random.default_rng(seed)
    graph = small(seed % 5)
    for _ in range(damages):
        _vandalise(graph, rng)
    for profile in (LOIHI2, LOIHI1):
        found = check(graph, profile)
        assert exit_code(found) in (0, 2, 4)


@pytest.mark.parametrize("value", ["two", np.array([1, 1]), float("nan"), None])
def test_fields_of_the_wrong_kind_are_findings(value):
    graph = small()
    graph.nodes["conv1"].groups = value
    for profile in (LOIHI1, LOIHI2):
        found = check(graph, profile)
        assert exit_code(found) == 2 and any(item.severity == "error" for item in found)


@pytest.mark.parametrize("end", ["input", "output"])
@pytest.mark.parametrize("value", ["x", np.array([np.nan, 8, 8]), np.array([[3, 1]]), np.array(3)])
def test_declared_shapes_of_the_wrong_kind_are_findings(end, value):
    graph = small()
    node = graph.nodes[end]
    (node.input_type if end == "input" else node.output_type)[end] = value
    assert exit_code(check(graph, LOIHI2)) == 2


def test_a_graph_with_one_output_is_checked_and_exported(tmp_path):
    from stars_deploy.graph.writer import write_graph
    from stars_deploy.workflow.export import export

    graph = small()
    fc = graph.nodes["fc"]
    fc.weight, fc.bias = fc.weight[:1], np.zeros(1)
    graph.nodes["output"] = nir.Output({"output": np.array([1])})
    graph.metadata["classes"] = "[]"
    assert exit_code(check(graph, LOIHI2)) == 0
    write_graph(graph, tmp_path / "one.nir")
    made = export(tmp_path / "one.nir", ["onnx", "loihi"], "loihi2", 4, "raw", tmp_path / "out")
    assert made["golden"]["n"] == 4


def test_what_netx_would_change_is_a_warning_and_no_netx_file_is_written(tmp_path):
    from stars_deploy.simulation.integer.engine import open_engine
    from stars_deploy.workflow.export import write_loihi

    graph = small()
    graph.nodes["fc"].weight[:] = 0
    found = check(graph, LOIHI2)
    assert exit_code(found) == 0
    assert {item.severity for item in found if item.code == "netx"} == {"warning"}
    write_loihi(lower(graph, LOIHI2), tmp_path)
    assert {path.name for path in (tmp_path / "loihi").iterdir()} == {
        "network.json",
        "network.npz",
    }
    open_engine(tmp_path / "loihi", "cpu")
    assert not any(item.code == "netx" for item in check(small(), LOIHI2))
