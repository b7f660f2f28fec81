"""evaluate and teacher train: what they write is what the networks do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from small_recipes import lively_student, random_images, recipe

from stars_deploy.config.recipe import Recipe, load_recipe
from stars_deploy.errors import DataError, InputError, TrainingDiverged
from stars_deploy.files import sha256, write_npz, write_text
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import student_to_nir
from stars_deploy.networks.weights import load_teacher, save_weights
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.workflow import evaluate as evaluate_module
from stars_deploy.workflow import teacher as teacher_module
from stars_deploy.workflow.evaluate import accuracy, evaluate
from stars_deploy.workflow.teacher import train_teacher

CPU = torch.device("cpu")


def write_run(run: Path, chosen: Recipe) -> None:
    write_text(run / "recipe.toml", tomli_w.dumps(chosen.resolved()))
    save_weights(lively_student(chosen), run / "student.safetensors")


def write_images(path: Path, count: int = 23) -> tuple[np.ndarray, np.ndarray]:
    images = random_images(count, (1, 12, 12))
    labels = np.random.default_rng(1).integers(0, 3, count)
    write_npz(path, {"images": images, "labels": labels})
    return images, labels


def test_evaluation_agrees_with_the_reference_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "BATCH", 10)  # uneven batches
    chosen = recipe(student={"T": 5})
    write_run(tmp_path / "run", chosen)
    images, labels = write_images(tmp_path / "some.npz")
    steps: list[tuple[str, int, int]] = []
    result = evaluate(
        tmp_path / "run", str(tmp_path / "some.npz"), "cpu", lambda *step: steps.append(step)
    )
    engine = FloatEngine(student_to_nir(lively_student(chosen), chosen))
    recording = engine.run(images)
    assert result["spikes"] == {node: int(s.sum()) for node, s in recording.spikes.items()}
    assert result["accuracy"] == (recording.logits.argmax(1) == labels).mean()
    assert result["rate"]["lif2"] == pytest.approx(recording.spikes["lif2"].mean())
    # Accuracy after t steps is the accuracy of the same network run for t steps.
    for t, value in enumerate(result["accuracy_by_t"], start=1):
        shorter = lively_student(recipe(student={"T": t}))
        assert value == pytest.approx(accuracy(shorter, images, labels, chosen.data, CPU))
    assert [step[1:] for step in steps] == [(10, 23), (20, 23), (23, 23)]


def test_training_json_is_what_was_returned(tmp_path: Path) -> None:
    write_run(tmp_path, recipe())
    write_images(tmp_path / "images.npz")
    result = evaluate(tmp_path, str(tmp_path / "images.npz"), "cpu")
    assert json.loads((tmp_path / "training.json").read_text()) == result
    assert (result["kind"], result["device"], result["n"], result["T"]) == (
        "measured",
        "cpu",
        23,
        4,
    )
    assert result["data"] == "small (images.npz)"
    assert result["accuracy"] == result["accuracy_by_t"][-1]
    assert result["student_sha256"] == sha256(tmp_path / "student.safetensors")
    assert {"stars_deploy", "torch", "norse"} <= result["versions"].keys()


def test_unfinished_runs_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe\.toml; expected the folder of a finished"):
        evaluate(tmp_path / "absent", "evaluation")
    write_run(tmp_path, recipe())
    with pytest.raises(DataError):
        evaluate(tmp_path, "evaluation", "cpu")
    assert not (tmp_path / "training.json").exists()


def separable(folder: Path) -> Path:
    """A folder with an npz per split: three classes of bright bars at different heights."""
    data = folder / "bars"
    data.mkdir()
    for seed, split in enumerate(("train", "test")):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 3, 240)
        images = generator.integers(0, 60, (240, 1, 12, 12), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[0, 1 + 4 * label : 3 + 4 * label] += 180
        write_npz(data / f"{split}.npz", {"images": images, "labels": labels})
    return data


def bars_recipe(**training: object) -> Recipe:
    chosen = {"epochs": 8, "batch_size": 24, "lr": 0.1, "seed": 3, **training}
    return recipe(training=chosen, data={"crop_padding": 0})


def test_teacher_learns_and_its_files_agree(tmp_path: Path) -> None:
    data = str(separable(tmp_path))
    seen: list[tuple[str, int, int]] = []
    summary = train_teacher(
        bars_recipe(), data, tmp_path / "out", "cpu", lambda *step: seen.append(step)
    )
    out = tmp_path / "out"
    assert summary["accuracy"] > 0.95 and summary["n"] == 240
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["sha256"] == sha256(out / "teacher.safetensors")
    assert summary["command"].startswith("stars-deploy teacher train small --data ")
    assert load_recipe(out / "recipe.toml") == bars_recipe()
    loaded = load_teacher(bars_recipe(), out / "teacher.safetensors")
    archive = np.load(Path(data) / "test.npz")
    x = to_input(archive["images"], bars_recipe().data, CPU)
    hits = (loaded(x).argmax(1).numpy() == archive["labels"]).mean()
    assert hits == pytest.approx(summary["accuracy"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(8))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [step[1] for step in seen] == list(range(1, 9))


def test_a_teacher_is_not_judged_on_what_it_was_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test.npz: one file has no split.*\*train.npz"):
        train_teacher(bars_recipe(), str(separable(tmp_path) / "test.npz"), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_same_seed_same_teacher(tmp_path: Path) -> None:
    data = str(separable(tmp_path))
    hashes = [
        train_teacher(bars_recipe(epochs=1, seed=seed), data, tmp_path / name, "cpu")["sha256"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_divergence_keeps_the_last_good_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(separable(tmp_path))
    real, calls = teacher_module._step, []

    def poisoned(*args: object) -> tuple[float, torch.Tensor]:
        calls.append(args)
        loss, logits = real(*args)  # type: ignore[arg-type]
        return (float("nan") if len(calls) > 15 else loss), logits

    monkeypatch.setattr(teacher_module, "_step", poisoned)
    with pytest.raises(TrainingDiverged, match=r"loss is nan in epoch 1; lower training\.lr"):
        train_teacher(bars_recipe(), data, tmp_path / "out", "cpu")
    assert not (tmp_path / "out" / "teacher.safetensors").exists()
    load_teacher(bars_recipe(), tmp_path / "out" / "checkpoint" / "teacher.safetensors")


def test_evaluation_looks_at_the_images_as_they_are_and_learns_nothing_from_them() -> None:
    chosen = recipe(data={"crop_padding": 4, "flip": True})
    images = random_images(23, (1, 12, 12))
    student = lively_student(chosen)
    with torch.no_grad():
        labels = student(to_input(images, chosen.data, CPU)).argmax(1).numpy()
    assert len(set(labels.tolist())) > 1
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train()  # as distillation leaves it
    # Batch statistics, a shift or a mirrored image would change at least one of the answers.
    assert accuracy(student, images, labels, chosen.data, CPU) == 1
    assert not student.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
