"""Grouped kernels: expanded for files, found again for targets."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import GraphError
from stars_deploy.graph.groups import compact_kernel, expand_groups, expand_kernel, find_groups


@settings(max_examples=40, deadline=None, derandomize=True)
@given(groups=st.sampled_from([1, 2, 3, 4, 6]), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_expand_is_what_torch_computes_with_groups(groups: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(groups * rows, columns, 3, 3))
    dense = expand_kernel(weight, groups)
    x = torch.tensor(rng.normal(size=(2, groups * columns, 5, 5)))
    expected = F.conv2d(x, torch.tensor(weight), groups=groups)
    torch.testing.assert_close(F.conv2d(x, torch.tensor(dense)), expected)
    assert find_groups(dense) == groups
    np.testing.assert_array_equal(compact_kernel(dense, groups), weight)


def test_one_weight_outside_the_blocks_joins_them() -> None:
    dense = expand_kernel(np.ones((4, 1, 1, 1)), 4)
    assert find_groups(dense) == 4
    dense[0, 1] = 1.0
    assert find_groups(dense) == 2
    dense[0, 3] = 1.0
    assert find_groups(dense) == 1


def test_groups_must_divide_the_outputs() -> None:
    with pytest.raises(GraphError, match="3 outputs cannot have 2 groups"):
        expand_kernel(np.ones((3, 1, 1, 1)), 2)


def test_pass_expands_convolutions_and_leaves_the_rest() -> None:
    conv = nir.Conv2d((4, 4), np.ones((4, 1, 3, 3)), 1, 1, 1, 4, np.zeros(4))
    other = nir.Affine(np.ones((2, 2)), np.zeros(2))
    graph = nir.NIRGraph({"conv": conv, "fc": other}, [("conv", "fc")], type_check=False)
    expanded = expand_groups(graph)
    assert expanded.nodes["conv"].groups == 1
    assert expanded.nodes["conv"].weight.shape == (4, 4, 3, 3)
    assert expanded.nodes["fc"] is other
    assert conv.groups == 4
