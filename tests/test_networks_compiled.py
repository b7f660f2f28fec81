"""The compiled neuron: the fused one's spikes and gradients; a machine without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from stars_deploy.config.recipe import Neuron
from stars_deploy.networks.neuron import spike_train

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
compiled = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
OTHER = {
    "tau": 3.0,
    "v_reset": -0.2,
    "decay_input": False,
    "surrogate": "sigmoid",
    "alpha": 4.0,
    "detach_reset": False,
}
T = 3


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    yield
    torch.compiler.reset()


def results(neuron: Neuron, current: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Spikes with and without gradient, and the gradients of current and leak."""
    leaf = current.clone(memory_format=torch.preserve_format).requires_grad_()
    leak = torch.tensor(0.4, requires_grad=True) if neuron.model == "plif" else None
    spikes = spike_train(leaf, T, neuron, leak)
    leaves = [leaf] if leak is None else [leaf, leak]
    silent = spike_train(current, T, neuron, None if leak is None else leak.detach())
    return [spikes.detach(), silent, *torch.autograd.grad((spikes * weight).sum(), leaves)]


@compiled
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize(
    "options",
    [{}, OTHER, {"model": "if", "surrogate": "triangle"}, OTHER | {"model": "plif"}],
)
def test_compiled_equals_fused(options, steps):
    rng = torch.Generator().manual_seed(0)
    current = torch.randn(steps, 5, 8, 7, 6, generator=rng) * 2 + 0.5
    weight = torch.randn(T, 5, 8, 7, 6, generator=rng)
    # As convolutions leave it: channels last.
    layout = current.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    expected = results(Neuron(**options), current, weight)
    assert 0.05 < expected[0].mean() < 0.95
    for x in (current, layout):
        found = results(Neuron(**options, backend="compiled"), x, weight)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[0])
        for ours, theirs in zip(found[2:], expected[2:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@compiled
def test_compiled_takes_any_layout_size_and_type():
    fused, ours = Neuron(), Neuron(backend="compiled")
    rng = torch.Generator().manual_seed(1)
    wide = torch.randn(4, 6, 5, generator=rng) * 2
    views = [wide[:T].transpose(1, 2), wide[:T, ::2], wide[::2][:2].expand(2, 6, 5), wide[:T, :1]]
    for current in [*views, wide[:T].double(), wide[:T].bfloat16()]:
        steps = len(current)
        expected = spike_train(current, steps, fused)
        found = spike_train(current, steps, ours)
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@compiled
def test_one_process_may_compare_many_neurons():
    # torch gives up after 8 variants of a function, and compare --vary T=... makes more.
    current = torch.linspace(0, 3, 12).view(1, 12)
    for steps in range(1, 11):
        expected = spike_train(current, steps, Neuron())
        assert torch.equal(spike_train(current, steps, Neuron(backend="compiled")), expected)


def test_a_machine_without_a_compiler_is_told_so(tmp_path):
    program = (
        "import torch\n"
        "from stars_deploy.config.recipe import Neuron\n"
        "from stars_deploy.errors import EngineError\n"
        "from stars_deploy.networks.neuron import spike_train\n"
        "try: spike_train(torch.ones(2, 3), 2, Neuron(backend='compiled'))\n"
        "except EngineError as problem: print(problem)\n"
    )
    environment = os.environ | {
        "CXX": str(tmp_path / "absent"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),  # what was compiled before would be used
    }
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "neuron.backend 'compiled' cannot be compiled here" in shown
    assert "Set neuron.backend to 'fused'" in shown
