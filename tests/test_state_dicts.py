"""Weights as people have them: wrappers, prefixes, formats; and nothing in them is executed."""

import os
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from stars_deploy.errors import WeightsError
from stars_deploy.networks.state_dicts import load_into, read_state_dict


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())


STATE = network().state_dict()
FORMS = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_acc": 91.2},
    "model": {"model": STATE, "optimizer": {"lr": 0.1}},
    "twice": {"model": {"state_dict": STATE}},
    "parallel": {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
    "compiled": {f"_orig_mod.module.{k}": v for k, v in STATE.items()},
    "wrapped class": {f"model.{k}": v for k, v in STATE.items()},
    "half": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "no counters": {k: v for k, v in STATE.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".PTH"])
@pytest.mark.parametrize("form", FORMS)
def test_every_common_form_gives_the_same_network(form, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form], path)
    loaded = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    load_into(loaded, read_state_dict(path), path)
    for name, tensor in loaded.state_dict().items():
        tolerance = 1e-3 if form == "half" else 0
        torch.testing.assert_close(tensor, STATE[name], rtol=tolerance, atol=tolerance)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(FORMS["parallel"]["state_dict"]))
    assert read_state_dict(path).keys() == STATE.keys()


class Bomb:
    """Its unpickling would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(zipped, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    if zipped:
        torch.save({"state_dict": {**STATE, "x": Bomb(marker)}}, path)
    else:
        path.write_bytes(pickle.dumps({**STATE, "x": Bomb(marker)}))
    with pytest.raises(WeightsError, match=r"weights\.pth: .*(executed|truncated)"):
        read_state_dict(path)
    assert not marker.exists()
    if zipped:  # the same file does run it where nobody takes care
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_whole_models_say_how_to_save_the_weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(network(), path)
    with pytest.raises(WeightsError, match=r"nothing in it is executed; .*model\.state_dict\(\)"):
        read_state_dict(path)


def test_programs_are_refused(tmp_path):
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather see torch.export
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(WeightsError, match="TorchScript program"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "no state dict: nothing"),
        ({"state_dict": {}}, "no state dict: nothing"),
        ({"epoch": 3}, "no state dict: 'epoch' beside or instead of tensors"),
        ([1, 2], "holds a list, expected a state dict"),
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ({**STATE, "0.bias": torch.tensor([1.0, float("nan"), 0.0])}, r"0\.bias holds NaN"),
    ],
)
def test_what_is_no_state_dict_is_named(content, says, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=says):
        read_state_dict(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(keep, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path)
    else:
        path.write_bytes(safetensors.torch.save(STATE))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(WeightsError, match="truncated"):
        read_state_dict(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_state_dict(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0.weight": torch.zeros(3, 2, 5, 5)}, r"0\.weight has shape \[3, 2, 5, 5\], the teacher"),
        ({"9.weight": torch.zeros(1)}, r"unexpected 9\.weight"),
        ({"0.weight": None}, r"missing 0\.weight"),
    ],
)
def test_weights_of_another_network_are_named(change, says, tmp_path):
    tensors = {k: v for k, v in {**STATE, **change}.items() if v is not None}
    with pytest.raises(WeightsError, match=says):
        load_into(network(), tensors, tmp_path / "weights.pt")
