"""torchvision's networks, random weights, 64x64: twins that fire, export and validate."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

from stars_deploy.cli.app import app

SHORT = [
    "run.epochs=2", "kd.steps=2", "kd.batch_size=8", "synthesis.batch_size=16",
    "synthesis.nayer.g_steps=4", "synthesis.nayer.gwp_loops=1", "synthesis.nayer.harvest_every=0",
    "warm_start.calibration_images=64",
]  # fmt: skip
VGG = """
import torchvision
from torch import nn

def net():
    features = torchvision.models.vgg11_bn(weights=None).features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * 2 * 2, 10))
"""


def lively(module):
    """Random weights, BatchNorms that know their inputs and differ: layers neither die nor burn."""
    torch.manual_seed(0)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.6, 1.4)
        nn.init.normal_(norm.bias, 0.2, 0.2)
    with torch.no_grad():
        for _ in range(12):
            module.train()(torch.randn(32, 3, 64, 64))
    return module.eval()


def vgg_features():
    features = torchvision.models.vgg11_bn(weights=None).features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * 2 * 2, 10))


NETWORKS = {
    "torchvision:resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    "torchvision:mobilenet_v2": lambda: torchvision.models.mobilenet_v2(
        weights=None, num_classes=10
    ),
    "vgg.py:net": vgg_features,
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", NETWORKS)
def test_a_network_of_torchvision_becomes_a_twin_that_validates(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg.py").write_text(VGG)
    torch.save(lively(NETWORKS[spec]()).state_dict(), "net.pth")
    sets = [word for change in SHORT for word in ("--set", change)]
    images = ["--image-shape", "3,64,64", "--mean", "0.5", "--std", "0.29"]
    own = ["--teacher", spec, "--weights", "net.pth", *images]
    for words in (
        ["distill", *own, *sets, "--out", "run"],
        [
            "export",
            "run",
            "--target",
            "nir",
            "--target",
            "onnx",
            "--golden",
            "4",
            "--out",
            "bundle",
        ],
        ["validate", "bundle", "--profile", "reference", "--engine", "onnx"],
        ["validate", "bundle", "--profile", "reference", "--engine", "float"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    validation = json.loads((tmp_path / "bundle" / "validation.json").read_text())
    assert validation["verdict"] == "pass"
    rates = np.array([layer["rate"] for layer in validation["layers"]])
    print(spec, len(rates), rates.min(), rates.max())
    assert ((rates > 0.02) & (rates < 0.6)).all(), rates
