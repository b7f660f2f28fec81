"""metrics.jsonl as TensorBoard reads it: every value, at its step and time."""

import json
import os
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_distillation import tiny_model
from typer.testing import CliRunner

import stars_deploy
from stars_deploy.cli.app import app
from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation.schedule import steps
from stars_deploy.errors import EngineError, InputError

LINES = [
    {"update": 0, "loss": 1.5, "agreement": 0.25, "lr": 0.1, "rates": [0.5, None, 0.75]},
    {"update": 10, "loss": None, "agreement": 0.5, "lr": 0.05, "rates": [0.25, 0.5, 1.0]},
]


def write(folder, lines, end="\n"):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + end)
    return folder


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def curves(folder):
    return {tag: [(e.step, e.value) for e in found] for tag, found in read(folder).items()}


def test_every_number_is_there_and_nothing_else(tmp_path):
    result = stars_deploy.tensorboard(write(tmp_path / "run", LINES), out=tmp_path / "events")
    expected = {
        "train/loss": [(0, 1.5)],
        "train/agreement": [(0, 0.25), (10, 0.5)],
        "train/lr": [(0, pytest.approx(0.1)), (10, pytest.approx(0.05))],
        "train/rates/0": [(0, 0.5), (10, 0.25)],
        "train/rates/1": [(10, 0.5)],
        "train/rates/2": [(0, 0.75), (10, 1.0)],
    }
    assert curves(tmp_path / "events") == expected
    assert result == {
        "events": str(tmp_path / "events"), "scalars": 10, "tags": sorted(expected),
    }  # fmt: skip


def test_steps_of_a_run_count_on_and_times_are_those_of_the_log(tmp_path):
    recipe, run = tiny_model(tmp_path / "model"), tmp_path / "run"
    stars_deploy.distill(recipe, out=run)
    os.utime(run / "metrics.jsonl", (1_000_000, 1_000_000))
    stars_deploy.tensorboard(run, out=tmp_path / "events")
    found = read(tmp_path / "events")
    # The place of every step in the schedule, counted one by one.
    order = {"synthesis": [], "calibration": [], "kd": []}
    for step in steps(load_recipe(run / "recipe.toml")):
        order[step.phase].append((step.epoch, step.number))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]["time_s"]
    for phase in ("synthesis", "kd"):
        own = [line for line in lines if line["phase"] == phase]
        expected = [order[phase].index((line["epoch"], line["step"])) for line in own]
        assert [event.step for event in found[f"{phase}/loss"]] == expected
        assert expected == sorted(set(expected)) and len(expected) > 2
        times = [1_000_000 - last + line["time_s"] for line in own]
        assert [event.wall_time for event in found[f"{phase}/loss"]] == pytest.approx(times)


def test_a_run_that_goes_on_is_converted_again(tmp_path):
    run, out = tmp_path / "run", tmp_path / "events"
    write(run, LINES[:1])
    stars_deploy.tensorboard(run, out=out)
    write(run, LINES, end='\n{"update": 20, "agree')  # a line that is being written
    stars_deploy.tensorboard(run, out=out)
    assert curves(out)["train/agreement"] == [(0, 0.25), (10, 0.5)]
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"loss": 1}', "[" * 9999])
def test_a_damaged_log_is_named(line, tmp_path):
    run = write(tmp_path / "run", LINES)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 3: expected an object"):
        stars_deploy.tensorboard(run, out=tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_out_destroys_nothing(tmp_path):
    run, out = write(tmp_path / "run", LINES), tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.txt, which is no event file"):
        stars_deploy.tensorboard(run, out=out)
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        stars_deploy.tensorboard(out, out=tmp_path / "events")
    with pytest.raises(InputError, match="is a file"):
        stars_deploy.tensorboard(run, out=out / "thesis.txt")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    run = write(tmp_path / "run", LINES)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = CliRunner().invoke(app, ["tensorboard", str(run), "--out", str(tmp_path / "events")])
    assert result.exit_code == EngineError.exit_code == 5
    assert "pip install 'stars-deploy[tensorboard]'" in result.stderr
    assert not (tmp_path / "events").exists()
