"""Weights on disk: what is loaded is what was saved, and everything else is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_recipes import lively_student, recipe
from torch import Tensor

from stars_deploy.config.recipe import find_recipe, load_recipe
from stars_deploy.data import load_data
from stars_deploy.errors import WeightsError
from stars_deploy.files import sha256
from stars_deploy.networks.families import build_teacher, seeded
from stars_deploy.networks.weights import load_student, load_teacher, save_weights
from stars_deploy.workflow.evaluate import accuracy


def test_teacher_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    teacher = seeded(build_teacher, recipe(), 3).to(memory_format=torch.channels_last)
    save_weights(teacher, tmp_path / "t.safetensors")
    loaded = load_teacher(recipe(), tmp_path / "t.safetensors")
    assert not loaded.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_student_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    student = lively_student(recipe())
    save_weights(student, tmp_path / "s.safetensors")
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(load_student(recipe(), tmp_path / "s.safetensors")(x), student(x))


def test_weights_are_relative_to_the_recipe_and_checked_against_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "t.safetensors"
    save_weights(build_teacher(recipe()), path)
    right = {"weights": "weights/t.safetensors", "sha256": sha256(path)}
    load_teacher(recipe(teacher=right), origin=tmp_path / "recipe.toml")
    wrong = recipe(teacher={**right, "sha256": "0" * 64})
    with pytest.raises(WeightsError, match=r"sha256 is .* the recipe expects 000"):
        load_teacher(wrong, origin=tmp_path / "recipe.toml")
    load_teacher(wrong, path)  # the user's own weights are not the recipe's


def test_the_packaged_teacher_is_intact() -> None:
    chosen = load_recipe("fashion-mnist")
    assert chosen.teacher.sha256 is not None
    load_teacher(chosen, origin=find_recipe("fashion-mnist"))
    folder = find_recipe("fashion-mnist").parent
    assert chosen.teacher.sha256 in (folder / "card.md").read_text()
    assert (folder / "teacher.safetensors").stat().st_size <= 1_000_000


def test_the_packaged_teacher_has_the_accuracy_that_its_card_states() -> None:
    chosen = load_recipe("fashion-mnist")
    teacher = load_teacher(chosen, origin=find_recipe("fashion-mnist"))
    images, labels = load_data("evaluation", chosen.data)
    found = accuracy(teacher, images, labels, chosen.data, torch.device("cpu"))
    card = (find_recipe("fashion-mnist").parent / "card.md").read_text()
    stated = re.search(r"`evaluation\.npz`\) \| 2,000 \| (0\.\d+)", card)
    assert stated is not None
    # One image of 2,000 may lie so near a border that another CPU decides it differently.
    assert found == pytest.approx(float(stated[1]), abs=0.0006)


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.safetensors: no such weights file"):
        load_teacher(recipe(), tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match=r"names no teacher\.weights; give --weights"):
        load_teacher(recipe())


@pytest.mark.parametrize("keep", [0, 5, 100, 2000, -1])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.safetensors"
    save_weights(build_teacher(recipe()), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"t\.safetensors: truncated, or not"):
        load_teacher(recipe(), path)


def change(tensors: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    changed = {key: value for key, value in tensors.items() if key != name}
    return changed if tensor is None else {**changed, name: tensor}


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "wider": (
        lambda t: change(t, "blocks.1.conv.weight", torch.zeros(7, 4, 3, 3)),
        r"tensor blocks\.1\.conv\.weight has shape \[7, 4, 3, 3\].*network has \[4, 4, 3, 3\]",
    ),
    "missing": (lambda t: change(t, "fc.bias", None), r"missing fc\.bias"),
    "unexpected": (
        lambda t: change(t, "blocks.9.conv.weight", torch.zeros(1)),
        r"unexpected blocks\.9\.conv\.weight",
    ),
    "nan": (
        lambda t: change(t, "fc.bias", torch.tensor([0.0, float("nan"), 0.0])),
        r"tensor fc\.bias holds NaN",
    ),
    "no statistics": (
        lambda t: {n: v for n, v in t.items() if ".bn." not in n},
        r"no BatchNorm statistics \(such as blocks\.0\.bn\.running_mean\).*with BatchNorm",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_foreign_weights_are_refused_by_name(tmp_path: Path, case: str) -> None:
    edit, message = CHANGES[case]
    path = tmp_path / "t.safetensors"
    tensors = {n: t.clone() for n, t in build_teacher(recipe()).state_dict().items()}
    safetensors.torch.save_file(edit(tensors), path)
    with pytest.raises(WeightsError, match=message):
        load_teacher(recipe(), path)


def test_first_mismatch_in_the_order_of_the_layers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    other = recipe(teacher={"args": {"channels": [5, 5, 8], "strides": [1, 2, 2]}})
    save_weights(build_teacher(other), path)
    with pytest.raises(
        WeightsError, match=r"tensor blocks\.0\.conv\.weight has shape \[5, 1, 3, 3\]"
    ):
        load_teacher(recipe(), path)


def test_failed_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    save_weights(build_teacher(recipe()), path)
    before = path.read_bytes()

    def full(name: Path, content: bytes) -> None:
        with name.open("wb") as stream:
            stream.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(build_teacher(recipe()), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.safetensors"]
