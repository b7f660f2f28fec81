"""Linear maps: compositions against torch, one convolution where that is exact, else a matrix."""

import math

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stars_deploy.errors import GraphError
from stars_deploy.graph import linear
from stars_deploy.graph.geometry import node_shape
from stars_deploy.graph.linear import (
    added,
    applied,
    as_matrix,
    as_operator,
    compose,
    identity,
    map_of,
)


def conv(weight, stride=1, padding=0, dilation=1, groups=1):
    return nir.Conv2d(None, weight, stride, padding, dilation, groups, np.zeros(len(weight)))


def pool(size, stride=None, padding=0, kind=nir.AvgPool2d):
    values = (size, size if stride is None else stride, padding)
    return kind(*(np.broadcast_to(np.asarray(x), (2,)).copy() for x in values))


def mapped(node, shape):
    return map_of("node", node, shape, node_shape("node", node, shape))


def by_torch(node, x):
    """What torch makes of x [C, H, W] or [N] at a node without bias."""
    value = torch.tensor(x)[None]
    if isinstance(node, nir.Conv2d):
        where = (torch.tensor(node.weight), None, node.stride, node.padding, node.dilation)
        return F.conv2d(value, *where, node.groups)[0].numpy()
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        window = [tuple(map(int, v)) for v in (node.kernel_size, node.stride, node.padding)]
        summed = 1 if isinstance(node, nir.SumPool2d) else None
        return F.avg_pool2d(value, *window, divisor_override=summed)[0].numpy()
    if isinstance(node, nir.Scale):
        return x * node.scale
    if isinstance(node, nir.Flatten):
        return x.reshape(-1)
    return F.linear(value, torch.tensor(node.weight))[0].numpy()


def composed(shape, *nodes):
    """The nodes as one map, and what torch makes of a value without symmetries."""
    total = identity(shape)
    x = np.random.default_rng(0).uniform(1, 2, shape)
    expected = x
    for node in nodes:
        total = compose(total, mapped(node, total.made))
        expected = by_torch(node, expected)
    return total, x, expected


def assert_is(total, x, expected):
    """The map applied, its operator and its matrix all give what torch gave."""
    assert total.given == x.shape and total.made == expected.shape
    for form in (total, as_operator(total), as_matrix(total)):
        assert (form.given, form.made) == (total.given, total.made)
        np.testing.assert_allclose(applied(form, x), expected, atol=1e-11)


def kernel(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


FLAT = nir.Flatten({"input": None}, 0, -1)
EVEN = nir.Scale(np.broadcast_to(kernel(2, 1, 1), (2, 8, 8)).copy())
EXACT = {
    "pool, conv": [pool(2), conv(kernel(3, 2, 3, 3))],
    "sum pool, conv": [pool(2, kind=nir.SumPool2d), conv(kernel(3, 2, 2, 2), stride=2)],
    "pools": [pool(2), pool(2)],
    "overlapping pool, conv": [pool(3, 1), conv(kernel(3, 2, 2, 2))],
    "conv, pool": [conv(kernel(3, 2, 3, 3), padding=1), pool(2)],
    "conv, conv": [conv(kernel(3, 2, 3, 3)), conv(kernel(2, 3, 2, 2), stride=2)],
    "stride, padding": [conv(kernel(3, 2, 2, 2), stride=2), conv(kernel(2, 3, 3, 3), padding=1)],
    "dilations": [conv(kernel(3, 2, 2, 2), dilation=2), conv(kernel(2, 3, 2, 3), dilation=(3, 2))],
    "point after": [conv(kernel(4, 2, 3, 3), padding=1, dilation=1), conv(kernel(3, 4, 1, 1))],
    "dilated, point": [conv(kernel(4, 2, 3, 3), padding=2, dilation=2), conv(kernel(3, 4, 1, 1))],
    "point, padded": [conv(kernel(4, 2, 1, 1)), conv(kernel(3, 4, 3, 3), padding=1)],
    "strided point": [conv(kernel(4, 2, 1, 1), stride=2), conv(kernel(3, 4, 3, 3), padding=1)],
    "point, strided point": [conv(kernel(4, 2, 1, 1)), conv(kernel(3, 4, 1, 1), stride=2)],
    "depthwise before": [conv(kernel(2, 1, 3, 3), groups=2), conv(kernel(4, 1, 2, 2), groups=2)],
    "depthwise after": [conv(kernel(4, 2, 2, 2)), conv(kernel(4, 1, 2, 2), groups=4)],
    "grouped": [conv(kernel(4, 1, 2, 2), groups=2), conv(kernel(6, 2, 2, 2), groups=2)],
    "scale": [EVEN, conv(kernel(3, 2, 2, 2))],
    "conv, scale": [conv(kernel(2, 2, 3, 3), padding=1), EVEN],
    "rows only": [conv(kernel(3, 2, 1, 3), stride=(2, 1)), conv(kernel(2, 3, 2, 1), stride=(1, 2))],
}


@pytest.mark.parametrize("name", EXACT)
def test_pairs_that_are_one_convolution(name):
    total, x, expected = composed((2, 8, 8), *EXACT[name])
    assert total.window is not None
    assert_is(total, x, expected)


MATRICES = {
    "padded convs": [conv(kernel(3, 2, 3, 3), padding=1), conv(kernel(2, 3, 3, 3), padding=1)],
    "odd map": [pool(3), conv(kernel(2, 2, 3, 3), padding=1)],  # row 6 and 7 belong to no window
    "fc": [FLAT, nir.Affine(kernel(3, 128), np.zeros(3))],
    "pool, fc": [pool(4), FLAT, nir.Affine(kernel(3, 8), np.zeros(3))],
    "grouped conv, fc": [
        conv(kernel(4, 1, 3, 3), stride=2, padding=1, groups=2),
        FLAT,
        nir.Linear(kernel(3, 64)),
    ],
    "depthwise, fc": [
        conv(kernel(2, 1, 3, 3), dilation=2, groups=2),
        FLAT,
        nir.Linear(kernel(3, 32)),
    ],
    "fc, fc": [FLAT, nir.Linear(kernel(4, 128)), nir.Linear(kernel(3, 4))],
    "uneven scale, conv": [nir.Scale(kernel(2, 8, 8)), conv(kernel(3, 2, 3, 3), padding=1)],
    "fc, scale": [FLAT, nir.Linear(kernel(4, 128)), nir.Scale(kernel(4))],
}


@pytest.mark.parametrize("name", MATRICES)
def test_pairs_that_are_a_matrix(name):
    total, x, expected = composed((2, 8, 8), *MATRICES[name])
    assert total.window is None and total.weight.shape == (expected.size, x.size)
    assert_is(total, x, expected)


def test_depthwise_operators_stay_depthwise():
    """Their groups are what keeps the synapses few."""
    wide, _, _ = composed((4, 6, 6), pool(2), pool(3))
    assert wide.groups == 4 and wide.weight.shape == (4, 1, 6, 6)
    np.testing.assert_allclose(wide.weight, 1 / 36)
    scaled, _, _ = composed((4, 6, 6), conv(kernel(4, 2, 3, 3), groups=2), pool(2))
    assert scaled.groups == 2 and scaled.weight.shape == (4, 2, 4, 4)


windows = st.fixed_dictionaries(
    {
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 1)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "groups": st.sampled_from([1, 1, 2, 4]),
        "pool": st.booleans(),
    }
)


def drawn(choice, inputs, outputs, seed):
    if choice["pool"]:
        padding = tuple(
            min(p, k // 2) for p, k in zip(choice["padding"], choice["kernel"], strict=True)
        )
        return pool(choice["kernel"], choice["stride"], padding)  # fmt: skip
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 1, (outputs, inputs // choice["groups"], *choice["kernel"]))
    return conv(weight, *(choice[key] for key in ("stride", "padding", "dilation", "groups")))


def drawn_pair(shape, first, second):
    nodes = [drawn(first, 4, 4, 1), drawn(second, 4, 8, 2)]
    between = node_shape_or_none(nodes[0], shape)
    assume(between is not None and node_shape_or_none(nodes[1], between) is not None)
    return nodes


def node_shape_or_none(node, shape):
    try:
        return node_shape("node", node, shape)
    except GraphError:
        return None


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.just(4), st.integers(3, 8), st.integers(3, 7)), first=windows, second=windows
)
def test_any_pair_equals_torch_and_a_matrix_is_only_taken_where_one_kernel_errs(
    shape, first, second
):
    """All values are positive: a pixel that one kernel sees and the pair does not, shows."""
    nodes = drawn_pair(shape, first, second)
    total, x, expected = composed(shape, *nodes)
    np.testing.assert_allclose(applied(total, x), expected, atol=1e-11)
    if total.window is None:
        one, two = mapped(nodes[0], shape), mapped(nodes[1], node_shape("node", nodes[0], shape))
        assert naive_errs(one, two, x, expected)


def naive_errs(one, two, x, expected):
    """Whether the merged kernel, taken without asking, gives other values or another shape."""
    merged = linear._merged(one, two)
    if merged.grid != two.grid:
        return True
    return not np.allclose(applied(merged, x), expected, atol=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=st.tuples(st.just(4), st.integers(4, 7), st.integers(4, 7)), choice=windows)
def test_a_single_node_as_map_matrix_and_operator(shape, choice):
    node = drawn(choice, 4, 8, 3)
    assume(node_shape_or_none(node, shape) is not None)
    assert_is(*composed(shape, node))


def test_pool_by_hand():
    """fc(mean of 2x2) is one dense matrix with each weight / 4 on the four positions."""
    fc = nir.Affine(np.array([[4.0, 8.0]]), np.zeros(1))
    total, _, _ = composed((2, 2, 2), pool(2), FLAT, fc)
    assert total.weight.tolist() == [[1.0] * 4 + [2.0] * 4]


def test_identities_change_nothing():
    values = np.arange(8.0).reshape(2, 2, 2)
    same = compose(identity((2, 2, 2)), identity((2, 2, 2)))
    assert same.weight is None
    assert_is(same, values, values)
    assert as_operator(same).weight.tolist() == [[[[1.0]]], [[[1.0]]]]
    flat = compose(same, mapped(FLAT, (2, 2, 2)))
    assert flat.weight is None and flat.made == (8,)
    assert_is(flat, values, values.reshape(-1))
    assert_is(identity((3,)), np.arange(3.0), np.arange(3.0))
    one = mapped(conv(kernel(3, 2, 2, 2)), (2, 2, 2))
    assert compose(identity((2, 2, 2)), one) == compose(one, identity(one.made)) == one


def test_a_flattened_convolution_is_an_operator_as_a_matrix():
    total, x, expected = composed((2, 4, 4), conv(kernel(3, 2, 3, 3)), FLAT)
    assert total.window is not None and as_operator(total).window is None
    assert_is(total, x, expected)


def test_a_flatten_and_a_scale_of_its_values():
    assert_is(*composed((2, 3, 3), FLAT, nir.Scale(kernel(18))))


def test_added_where_both_are_the_same_kind():
    one, other = (mapped(conv(kernel(3, 2, 2, 2, seed=s)), (2, 5, 5)) for s in (1, 2))
    x = kernel(2, 5, 5)
    np.testing.assert_allclose(applied(added(one, other), x), applied(one, x) + applied(other, x))
    fcs = [mapped(nir.Linear(kernel(3, 4, seed=s)), (4,)) for s in (1, 2)]
    x = kernel(4)
    expected = applied(fcs[0], x) + applied(fcs[1], x)
    np.testing.assert_allclose(applied(added(*fcs), x), expected)


@pytest.mark.parametrize(
    "other",
    [
        conv(kernel(3, 2, 1, 1)),
        conv(kernel(3, 2, 3, 3), padding=2, dilation=2),
        pool(3, 1, 1),
    ],
)
def test_added_is_none_for_another_window_or_groups(other):
    """All put out maps of the same height and width."""
    one = mapped(conv(kernel(3, 2, 3, 3), padding=1), (2, 6, 6))
    assert added(one, mapped(other, (2, 6, 6))) is None
    assert added(identity((2, 6, 6)), identity((2, 6, 6))) is None


def test_a_scale_within_channels_is_pointwise_others_are_matrices():
    even = mapped(nir.Scale(np.broadcast_to(kernel(2, 1, 1), (2, 3, 3)).copy()), (2, 3, 3))
    assert even.weight.shape == (2, 1, 1, 1) and even.groups == 2
    uneven = mapped(nir.Scale(kernel(2, 3, 3)), (2, 3, 3))
    assert uneven.weight.shape == (18, 18)


def test_what_is_too_large_says_what_and_how_large(monkeypatch):
    size = math.prod((2, 8, 8))
    monkeypatch.setattr(linear, "LARGEST_MATRIX", size * size - 1)
    with pytest.raises(GraphError, match=rf"Scale that differs within a channel.*{size} x {size}"):
        mapped(nir.Scale(kernel(2, 8, 8)), (2, 8, 8))
    with pytest.raises(GraphError, match=rf"{size} x {size} weights, more than .*; use map sizes"):
        composed((2, 8, 8), *(conv(kernel(2, 2, 3, 3), padding=1) for _ in range(2)))
    monkeypatch.setattr(linear, "LARGEST_MATRIX", size * size)
    assert composed((2, 8, 8), *(conv(kernel(2, 2, 3, 3), padding=1) for _ in range(2)))


def test_nodes_that_are_not_linear_are_named():
    with pytest.raises(GraphError, match="spikes: a Threshold node is not linear"):
        map_of("spikes", nir.Threshold(np.ones(3)), (3,), (3,))


def test_a_padded_map_with_few_inputs_becomes_a_matrix_without_one_row_per_output_squared():
    """4 inputs and a million outputs: the identity of the outputs would take terabytes."""
    total = as_matrix(mapped(conv(np.full((1, 1, 1, 1), 3.0), padding=500), (1, 2, 2)))
    expected = np.zeros((1002, 1002))
    expected[500:502, 500:502] = [[3, 6], [9, 12]]
    found = applied(total, np.arange(1.0, 5).reshape(1, 2, 2)).reshape(1002, 1002)
    np.testing.assert_array_equal(found, expected)
