"""Placement: counted by hand, and against a model that enumerates every synapse."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered_shapes import Document, residual_network, s_resnet19, s_resnet20

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile, parse_profile
from stars_deploy.errors import InputError
from stars_deploy.simulation.placement.place import message_hops, place
from stars_deploy.simulation.placement.search import Stored, _starts, best_grid, demand_of

LOIHI2 = load_profile("loihi2")
MESH = {"mesh_columns": 2, "mesh_rows": 2, "cores_per_tile": 1}


def chip(sharing=True, convolution=None, **limits):
    """A profile of Loihi 2's integers and exactly these limits."""
    content = LOIHI2.model_dump(mode="json", by_alias=True, exclude_none=True)
    values = limits | {"convolution_sharing": sharing}
    note = {"source": "test", "confidence": "choice"}
    content["limits"] = {name: {"value": value, **note} for name, value in values.items()}
    rules = convolution or {}
    content["convolution"] = {name: {"value": value, **note} for name, value in rules.items()}
    return parse_profile(content, "test")


def placed(built, profile):
    return place(built.document, built.arrays, profile)


def parts(placement, name):
    return next(p for p in placement.populations if p.name == name).parts


def dense_chain():
    built = Document((100,))
    built.dense("input", "a", 200)
    built.dense("a", "b", 100)
    return built


def test_a_dense_layer_by_hand():
    """100 pixels -> 200 neurons -> 100 neurons on cores of 50 neurons, 8-bit weights."""
    result = placed(dense_chain(), chip(neurons_per_core=50, cores_per_chip=4))
    first, second = parts(result, "a"), parts(result, "b")
    assert [part.channels for part in first] == [(0, 50), (50, 100), (100, 150), (150, 200)]
    assert [part.core for part in (*first, *second)] == [0, 1, 2, 3, 4, 5]
    assert [(p.chip, p.core_on_chip) for p in (*first, *second)] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1),
    ]  # fmt: skip
    assert {part.synaptic_memory_bit for part in first} == {50 * 100 * 8}
    assert {part.synaptic_memory_bit for part in second} == {50 * 200 * 8}
    assert {part.input_axons for part in first} == {100}  # the pixels
    assert {part.input_axons for part in second} == {200}
    assert {part.output_axons for part in first} == {50 * 2}  # each neuron to both cores of b
    assert {part.output_axons for part in second} == {0}
    (misfit,) = result.misfits
    assert (misfit.resource, misfit.need, misfit.limit) == ("cores", 6, 4)
    assert result.totals()["chips"] == 2


def test_synaptic_memory_splits_a_dense_layer():
    """A core of 1000 weights of 8 bits holds 10 neurons of 100 inputs: 20 cores, then 20."""
    result = placed(dense_chain(), chip(synaptic_memory_per_core_bit=8000))
    assert len(parts(result, "a")) == 20
    assert len(parts(result, "b")) == 20  # 5 neurons of 200 inputs
    assert not result.misfits


def small_map():
    """1x4x4 -> 3x3 padded to 2x4x4 -> 2 outputs."""
    built = Document((1, 4, 4))
    built.conv("input", "a", 2)
    built.dense("a", "b", 2)
    return built


def test_a_convolution_by_hand():
    """Taps inside a padded 4x4 map: 4 corners of 4, 8 edges of 6, 4 inner of 9: 100 a channel."""
    shared = placed(small_map(), chip())
    (core,) = parts(shared, "a")
    assert core.synaptic_memory_bit == 2 * 9 * 8 and core.input_axons == 16
    single = placed(small_map(), chip(sharing=False))
    assert parts(single, "a")[0].synaptic_memory_bit == 2 * 100 * 8
    # Two rows read three of four: 12 axons a core, where half of the channels would need 16.
    halves = parts(placed(small_map(), chip(sharing=False, neurons_per_core=16)), "a")
    assert [(part.channels, part.rows) for part in halves] == [((0, 2), (0, 2)), ((0, 2), (2, 4))]
    assert {(part.input_axons, part.synaptic_memory_bit) for part in halves} == {(12, 100 * 8)}


def test_index_and_delay_bits_of_single_synapses():
    built = Document((2, 3, 3))
    built.population("a", (2, 3, 3))
    built.connect("input", "a", np.ones((2, 2, 1, 1), np.int32), "sparse_delay", delay=1)
    profile = chip(synapse_index_bits=10, synapse_delay_bits=6)
    (core,) = parts(placed(built, profile), "a")
    assert core.synaptic_memory_bit == 18 * 2 * (8 + 10 + 6)  # never shared


def test_blocks_of_zeros_of_a_grouped_kernel_are_not_stored():
    """Depthwise, written as two blocks of 2x2 channel pairs: half of the pairs are empty."""
    built = Document((4, 3, 3))
    built.population("a", (4, 3, 3))
    weight = np.zeros((4, 2, 3, 3), np.int32)
    weight[np.arange(4), np.arange(4) % 2] = 5
    built.connect("input", "a", weight, padding=[1, 1], groups=2)
    assert parts(placed(built, chip()), "a")[0].synaptic_memory_bit == 4 * 9 * 8


def test_a_relay_takes_cores_and_axons():
    document, arrays = residual_network((1,), (2,), 3, image=(1, 4, 4))
    result = place(document, arrays, chip(neurons_per_core=16))
    relay = next(p for p in result.populations if p.node is None)
    assert relay.name == "s0b0r" and len(relay.parts) == 2
    assert sum(part.neurons for part in relay.parts) == 32
    assert {part.synaptic_memory_bit for part in relay.parts} == {8}  # one tap, shared
    joined = parts(result, "s0b0b")
    assert all(part.input_axons > 16 for part in joined)  # both branches


def test_two_connections_from_one_source_count_its_neurons_once():
    built = small_map()
    weight = np.ones((2, 1, 1, 1), np.int32)
    built.connect("input", "a", weight)
    built.connect("input", "a", weight)  # parallel synapses of a strong skip
    (core,) = parts(placed(built, chip()), "a")
    assert core.input_axons == 16
    assert core.synaptic_memory_bit == (2 * 9 + 2 + 2) * 8  # stored thrice


def test_hops_on_a_mesh_by_hand():
    """2x2 tiles of one core: a on cores 0 and 1 (one row), b on core 2 and 3 (the other)."""
    built = Document((4,))
    built.dense("input", "a", 4)
    built.dense("a", "b", 4)
    result = placed(built, chip(neurons_per_core=2, cores_per_chip=4, **MESH))
    assert [part.tile for name in "ab" for part in parts(result, name)] == [0, 1, 2, 3]
    hops = message_hops(result, {"a": np.array([1.0, 0, 0.5, 0]), "b": np.zeros(4)})
    # Spikes of core 0: 1.0 to core 2 (south) and 3 (east, south); of core 1: 0.5 to 2 and 3.
    assert hops.messages == 3 and hops.off_chip == 0 and hops.within_tile == 0
    assert hops.east_west == 1.0 + 0.5 and hops.north_south == 2 * 1.0 + 2 * 0.5


def test_hops_within_a_tile_and_off_the_chip():
    built = Document((4,))
    for source, name in (("input", "a"), ("a", "b"), ("b", "c")):
        built.dense(source, name, 4)
    mesh = {"mesh_columns": 1, "mesh_rows": 1, "cores_per_tile": 2}
    result = placed(built, chip(cores_per_chip=2, chips=2, **mesh))
    hops = message_hops(result, {"a": np.full(4, 2.0), "b": np.full(4, 0.25)})
    assert (hops.messages, hops.within_tile, hops.off_chip) == (9, 8, 1)
    assert hops.east_west == hops.north_south == 0


def test_hops_are_unknown_where_the_mesh_is():
    result = placed(dense_chain(), chip(neurons_per_core=50))
    hops = message_hops(result, {"a": np.ones(200)})
    assert hops.messages == 400
    assert hops.within_tile is hops.east_west is hops.north_south is None


def test_spikes_of_the_wrong_shape_or_absent():
    result = placed(dense_chain(), chip())
    with pytest.raises(InputError, match=r"spikes: a has shape \(3,\), expected \(200, 1, 1\)"):
        message_hops(result, {"a": np.ones(3)})
    with pytest.raises(InputError, match="spikes: a is missing"):
        message_hops(result, {})


@pytest.mark.parametrize(
    ("limits", "resource", "population", "need", "limit"),
    [
        ({"input_axons_per_core": 150}, "input_axons", "b", 200, 150),
        ({"synaptic_memory_per_core_bit": 1200}, "synaptic_memory", "b", 1600, 1200),
        ({"neurons_per_core": 10, "output_axons_per_core": 9}, "output_axons", "a", 10, 9),
        ({"cores_per_chip": 1}, "cores", None, 2, 1),
        ({"destinations_per_core": 0}, "destinations", "a", 1, 0),
    ],
)
def test_what_does_not_fit_is_named_and_placed_all_the_same(
    limits, resource, population, need, limit
):
    result = placed(dense_chain(), chip(**limits))
    (misfit,) = result.misfits
    assert (misfit.resource, misfit.population) == (resource, population)
    assert (misfit.need, misfit.limit) == (need, limit)
    assert sum(part.neurons for p in result.populations for part in p.parts) == 300


def test_output_axons_split_the_source():
    """Each of 200 neurons sends to 2 cores of b; 100 output axons: 50 neurons a core."""
    limits = {"neurons_per_core": 60, "output_axons_per_core": 100}
    result = placed(dense_chain(), chip(**limits))
    assert len(parts(result, "b")) == 2 and len(parts(result, "a")) == 4
    assert not result.misfits


def test_delays_and_convolutions_out_of_range():
    built = Document((2, 6, 6))
    built.population("a", (2, 6, 6))
    built.connect("input", "a", built.weight((2, 2, 1, 1)), "sparse_delay", delay=3)
    built.conv("a", "b", 2, kernel=5, stride=3)
    rules = {"kernel_max": 3, "strides": [1, 2], "padding_max": 1, "output_size_max": 4}
    result = placed(built, chip(convolution=rules, synaptic_delay_max_steps=2))
    found = {(m.resource, m.connection, m.need) for m in result.misfits}
    assert found == {
        ("synaptic_delay", "c0", 3),
        ("convolution_output_size", "c0", 6),
        ("convolution_kernel", "c1", 5),
        ("convolution_stride", "c1", 3),
        ("convolution_padding", "c1", 2),
    }


def test_a_loop_is_refused():
    built = dense_chain()
    built.connect("b", "a", built.weight((200, 100)))
    with pytest.raises(InputError, match="loop"):
        placed(built, chip())


def test_floating_point_has_nothing_to_place():
    with pytest.raises(InputError, match="floating point"):
        placed(dense_chain(), load_profile("reference"))


# A chip of whole layers: Speck's cores by the formulas of sinabs.


def speck(**changes):
    import tomllib

    text = asset("hardware_profiles", "speck2f.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    content["limits"] |= changes
    return parse_profile(content, "test")


def test_whole_layers_take_the_memory_that_sinabs_states():
    """16 -> 32 channels, 3x3: 16 * 32 * 16 = 8 Ki words; a 30x30 map takes 32 * 32 a channel."""
    built = Document((16, 30, 30))
    built.conv("input", "a", 32)
    (core,) = parts(placed(built, speck()), "a")
    assert core.synaptic_memory_bit == 8 * 1024 * 8
    assert core.neurons == 32 * 32 * 32 and core.core < 5  # only cores 0 to 4 hold 32 Ki states


def test_layers_are_moved_so_that_all_find_a_core():
    """Two layers that only two cores hold, after two that could have taken them."""
    kinds = [
        {"cores": 2, "neurons": 64, "synaptic_memory_bit": 8 * 1024, "source": "t",
         "confidence": "choice"},
        {"cores": 2, "neurons": 8, "synaptic_memory_bit": 8 * 64, "source": "t",
         "confidence": "choice"},
    ]  # fmt: skip
    built = Document((8,))
    for source, name, size in (("input", "a", 8), ("a", "b", 8), ("b", "c", 64), ("c", "d", 8)):
        built.dense(source, name, size)
    result = placed(built, speck(core_kinds=kinds))
    assert not result.misfits
    core = {name: parts(result, name)[0].core for name in "abcd"}
    assert {core["c"], core["d"]} == {0, 1} and {core["a"], core["b"]} == {2, 3}
    built.dense("d", "e", 8)
    (taken, cores) = placed(built, speck(core_kinds=kinds)).misfits
    assert (taken.resource, taken.population, cores.need, cores.limit) == ("free_cores", "e", 5, 4)


def test_a_layer_too_large_for_every_core():
    built = Document((16, 64, 64))
    built.conv("input", "a", 32)
    (misfit,) = placed(built, speck()).misfits
    assert (misfit.resource, misfit.need, misfit.limit) == ("neurons", 32 * 64 * 64, 65536)


# Against every synapse, one by one.


def synapses(built):
    """Yield (connection, target neuron, source neuron, weight) of every synapse."""
    for entry in built.document["connections"]:
        weight = built.arrays[entry["weight_key"]]
        target, source = built.shapes[entry["target"]], built.shapes[entry["source"]]
        channels, rows, columns = target
        per_group = weight.shape[1]
        for o, y, x in itertools.product(range(channels), range(rows), range(columns)):
            first = o // (channels // entry["groups"]) * per_group
            for i, ky, kx in itertools.product(*map(range, weight.shape[1:])):
                sy = y * entry["stride"][0] - entry["padding"][0] + ky * entry["dilation"][0]
                sx = x * entry["stride"][1] - entry["padding"][1] + kx * entry["dilation"][1]
                if not (0 <= sy < source[1] and 0 <= sx < source[2]):
                    continue
                single = entry["kind"] == "sparse_delay"
                if weight[o, i, ky, kx] if single else weight[o, i].any():
                    yield entry, (o, y, x), (first + i, sy, sx)


def core_of(population):
    return {
        neuron: part
        for part in population.parts
        for neuron in itertools.product(range(*part.channels), range(*part.rows),
                                        range(*part.columns))
    }  # fmt: skip


@st.composite
def networks(draw):
    """input -> a -> b with one to three connections from a to b, of any geometry that fits."""
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    groups = draw(st.sampled_from([1, 2]))
    height, width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    built = Document((2, height, width), seed=seed)
    built.conv("input", "a", 4, kernel=draw(st.sampled_from([1, 3])))
    stride = [draw(st.integers(1, 2)) for _ in range(2)]
    size = [-(-side // step) for side, step in zip((height, width), stride, strict=True)]
    channels = 2 * draw(st.integers(1, 3))
    built.population("b", (channels, *size))
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.sampled_from([1, 3])), draw(st.integers(1, 2))
        weight = built.weight((channels, 4 // groups, kernel, kernel))
        weight[rng.random(weight.shape[:2]) < 0.3] = 0  # empty channel pairs
        built.connect(
            "a", "b", weight, draw(st.sampled_from(["conv", "sparse_delay"])), stride=stride,
            padding=[dilation * (kernel // 2)] * 2, dilation=[dilation] * 2, groups=groups,
        )  # fmt: skip
    return built


LIMITS = st.fixed_dictionaries(
    {"neurons_per_core": st.integers(1, 40)},
    optional={
        "synaptic_memory_per_core_bit": st.integers(300, 4000),
        "input_axons_per_core": st.integers(20, 80),
        "output_axons_per_core": st.integers(4, 40),
    },
)
FIELDS = {
    "neurons": "neurons_per_core",
    "synaptic_memory_bit": "synaptic_memory_per_core_bit",
    "input_axons": "input_axons_per_core",
    "output_axons": "output_axons_per_core",
}


@settings(max_examples=60, deadline=None)
@given(built=networks(), limits=LIMITS, sharing=st.booleans())
def test_every_count_against_single_synapses(built, limits, sharing):
    mesh = {"mesh_columns": 3, "mesh_rows": 2, "cores_per_tile": 2, "cores_per_chip": 12}
    result = placed(built, chip(sharing, **limits, **mesh))
    homes = {p.name: core_of(p) for p in result.populations}
    for population in result.populations:  # each neuron on exactly one core
        assert len(homes[population.name]) == population.neurons
        assert sum(part.neurons for part in population.parts) == population.neurons

    stored, kernels = defaultdict(int), defaultdict(set)
    heard, sends = defaultdict(set), defaultdict(set)
    for entry, target, source in synapses(built):
        part = homes[entry["target"]][target]
        if sharing and entry["kind"] == "conv":
            kernels[part.core].add((entry["name"], target[0]))
        else:
            stored[part.core] += 8
        heard[part.core].add((entry["source"], source))
        sends[entry["source"], source].add(part)
    for entry in built.document["connections"]:
        weight = built.arrays[entry["weight_key"]]
        for part in parts(result, entry["target"]):
            if sharing and entry["kind"] == "conv":
                for channel in range(*part.channels):
                    pairs = weight[channel].any(axis=(1, 2)).sum()
                    stored[part.core] += int(pairs) * weight[0, 0].size * 8
    excused = {(m.population, m.resource.replace("memory", "memory_bit")) for m in result.misfits}
    for population in result.populations:
        for part in population.parts:
            assert part.synaptic_memory_bit == stored[part.core]
            assert part.input_axons == len(heard[part.core])
            mine = [n for n, home in homes[population.name].items() if home is part]
            sent = sum(len(sends[population.name, neuron]) for neuron in mine)
            assert part.output_axons == sent
            for name, limit in FIELDS.items():
                if limit in limits and (population.name, name) not in excused:
                    assert getattr(part, name) <= limits[limit]

    spikes = {"a": np.random.default_rng(1).random(built.shapes["a"])}
    expected = np.zeros(5)
    for neuron, here in homes["a"].items():
        for there in sends["a", neuron]:
            if here.chip != there.chip:
                expected += spikes["a"][neuron] * np.array([1, 0, 0, 0, 1])
                continue
            x = abs(here.tile % 3 - there.tile % 3)
            y = abs(here.tile // 3 - there.tile // 3)
            expected += spikes["a"][neuron] * np.array([1, here.tile == there.tile, x, y, 0])
    hops = message_hops(result, spikes)
    got = [hops.messages, hops.within_tile, hops.east_west, hops.north_south, hops.off_chip]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(built=networks(), limits=LIMITS)
def test_no_grid_of_equal_blocks_takes_fewer_cores(built, limits):
    from stars_deploy.simulation.placement.links import link_of

    shapes = built.shapes
    entries = built.document["connections"][1:]
    links = [link_of(e, built.arrays[e["weight_key"]], shapes["a"], shapes["b"], True)
             for e in entries]  # fmt: skip
    demand = demand_of(shapes["b"], links, [], Stored(8, 8, 8))
    known = {name: limits[limit] for name, limit in FIELDS.items() if limit in limits}

    def fits(starts):
        needs = demand.per_core(starts)
        return all(needs[name].max() <= bound for name, bound in known.items())

    if not fits(_starts(shapes["b"], (1, 1, 1))):
        return
    sizes = itertools.product(*(range(1, side + 1) for side in shapes["b"]))
    grids = [_starts(shapes["b"], one) for one in sizes]
    fewest = min(np.prod([len(axis) for axis in grid]) for grid in grids if fits(grid))
    best = best_grid(demand, known)
    assert fits(best) and np.prod([len(axis) for axis in best]) == fewest


# Networks of the paper's size.


def test_s_resnet20_on_loihi2():
    document, arrays = s_resnet20()
    result = place(document, arrays, LOIHI2)
    assert not result.misfits and result.cores <= 120
    # Stem, 3 blocks of two convolutions and a relay; from the second stage on no first relay.
    assert result.totals()["neurons"] == 10 * 16384 + 8 * 8192 + 8 * 4096 + 10
    assert len(parts(result, "stem")) == 2  # 16 channels of 32x32 on cores of 8192 neurons


def test_s_resnet19_needs_more_than_one_chip():
    document, arrays = s_resnet19()
    result = place(document, arrays, LOIHI2)
    (misfit,) = result.misfits
    assert misfit.resource == "cores" and 120 < misfit.need <= 960
    # 512 channels of 512 x 3 x 3 weights of 8 bits are 18 times the memory of a core.
    assert len(parts(result, "s2b1a")) >= 18
    assert not place(document, arrays, load_profile("loihi2-kapoho-point")).misfits
    chips = [population.chips for population in result.populations]
    assert any(len(spread) > 1 for spread in chips)  # a layer goes on on the next chip


def test_without_sharing_every_synapse_is_stored():
    document, arrays = s_resnet20()
    shared = place(document, arrays, chip(neurons_per_core=8192))
    single = place(document, arrays, chip(False, neurons_per_core=8192))
    assert single.totals()["synaptic_memory_bit"] > 50 * shared.totals()["synaptic_memory_bit"]
