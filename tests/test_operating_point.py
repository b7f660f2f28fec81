"""The operating point: tail masses and rates against a student whose currents are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_distillation import tiny_model

from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation.stars import firing_thresholds
from stars_deploy.errors import InputError
from stars_deploy.networks.images import to_input
from stars_deploy.networks.weights import load_student
from stars_deploy.workflow.distill import distill
from stars_deploy.workflow.operating_point import operating_point


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("point")
    model = tiny_model(folder / "model")
    distill(load_recipe(model, ["student.T=4"]), folder / "run", origin=model)
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.zeros(40, np.int64))
    return folder / "run"


def test_tails_and_rates_are_those_of_the_student(run):
    data = run.parent / "data.npz"
    result = operating_point(run, str(data))
    recipe = load_recipe(run / "recipe.toml")
    student = load_student(recipe, run / "student.safetensors")
    images = torch.from_numpy(np.load(data)["images"])
    with torch.no_grad():
        taps = student.taps(to_input(images, recipe.data, torch.device("cpu")))
    assert result["thresholds"] == firing_thresholds(recipe.neuron, 4)
    for index, layer in enumerate(result["layers"]):
        current, spikes = taps.pre_activations[index].mean(0), taps.activations[index]
        expected = [float((current > level).float().mean()) for level in result["thresholds"]]
        assert layer["real"]["tail_mass"] == pytest.approx(expected, abs=1e-6)
        assert layer["real"]["predicted_rate"] == pytest.approx(sum(expected) / 4, abs=1e-6)
        assert layer["real"]["rate"] == pytest.approx(float(spikes.mean()), abs=1e-6)
        tails = layer["synthetic"]["tail_mass"]
        assert tails == sorted(tails)  # thresholds fall with t
        change = layer["synthetic"]["rate"] - layer["real"]["rate"]
        assert {"over": change > 0, "under": change < 0, "alike": True}[layer["firing"]]
    assert json.loads((run / "operating_point.json").read_text()) == json.loads(json.dumps(result))
    assert (run / "operating_point.svg").read_text().lstrip().startswith("<?xml")


def test_the_first_layers_rate_never_exceeds_what_is_predicted(run):
    # Its current is constant, and after a hard reset a neuron fires later than Eq. 9 says.
    layer = operating_point(run)["layers"][0]
    assert "real" not in layer and "firing" not in layer
    assert layer["synthetic"]["rate"] <= layer["synthetic"]["predicted_rate"] + 1e-9


def test_a_part_of_the_images_is_taken_from_all_over_them(run, tmp_path):
    # A folder of images is ordered by class: its first images are of one class.
    images = np.load(run.parent / "data.npz")["images"]
    images[20:] //= 8
    parts = {"all": images, "spread": images[[0, 10, 20, 30]]}
    rates = {}
    for name, part in parts.items():
        np.savez(tmp_path / f"{name}.npz", images=part, labels=np.zeros(len(part), np.int64))
        result = operating_point(run, str(tmp_path / f"{name}.npz"), limit=4)
        assert result["images"] == {"synthetic": 4, "real": 4}
        rates[name] = [layer["real"]["tail_mass"] for layer in result["layers"]]
    assert rates["all"] == rates["spread"]


def test_without_a_run_it_says_what_it_wants(tmp_path):
    (tmp_path / "recipe.toml").write_text((tiny_model(tmp_path / "m")).read_text())
    with pytest.raises(InputError, match="expected a finished run"):
        operating_point(tmp_path)
