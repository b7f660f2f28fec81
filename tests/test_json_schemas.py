"""What every command prints under --json, judged by its published schema; nothing may drift."""

import copy
import json
import os
from pathlib import Path

import json_page
import jsonschema
import numpy as np
import own_networks
import pytest
import torch
from test_api import COMMANDS
from tiny_distillation import tiny_model
from typer.testing import CliRunner

from stars_deploy.cli.app import app
from stars_deploy.results.schemas import RESULTS, schema
from stars_deploy.workflow import demo

DOCS = Path(__file__).parents[1] / "docs"
# What is run, in this order, each on what the earlier ones left.
RUNS = {
    "distill --dry-run": "distill my-model --out run --dry-run",
    "teacher-import": "teacher import net.py:Fire --weights net.pt --image-shape 2,8,8 --mean 0.5 "
    "--std 0.29 --out imported",
    "teacher-train": "teacher train my-model --data data --set training.epochs=1 --out teacher",
    "distill": "distill my-model --out run",
    "evaluate": "evaluate run --data data",
    "export": "export run --target onnx --target loihi --out bundle",
    "check": "check bundle",
    "check speck2f": "check bundle --profile speck2f",
    "simulate": "simulate bundle --data data",
    "validate": "validate bundle --engine onnx",
    "validate integer": "validate bundle",
    "validate float": "validate bundle --engine float",
    "sweep": "sweep bundle --out sweep",
    "sweep data": "sweep bundle --data data --out sweep-data",
    "operating-point": "operating-point run --data data",
    "finetune": "finetune run --updates 2 --weights my-model/teacher.safetensors --out tuned",
    "compare": "compare my-model --vary kd.lr=0.01,0.02 --seeds 0-2 --data data --out compared",
    "tensorboard": "tensorboard run --out events",
    "demo": "demo --out demo",
    "profiles": "profiles",
    "zoo": "zoo",
    "doctor": "doctor",
    "error": "evaluate nothing",
    "error usage": "evaluate",
}
FILES = {
    "summary.json": "run/summary.json",
    "teacher.json": "imported/teacher.json",
    "training.json": "run/training.json",
    "manifest.json": "bundle/manifest.json",
    "validation.json": "bundle/validation.json",
    "sweep": "sweep/sweep.json",
    "compare": "compared/compare.json",
    "operating-point": "run/operating_point.json",
    "finetune": "tuned/finetune.json",
    "teacher-train": "teacher/summary.json",
}


def images(seed):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8),
        "labels": np.arange(12) % 3,
    }


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Run everything once in one folder; return what each printed, and the folder."""
    folder, before = tmp_path_factory.mktemp("json"), Path.cwd()
    os.chdir(folder)
    try:
        recipe = tiny_model(folder / "my-model")
        # A student of random weights fits the chip; one of this random teacher's would not.
        recipe.write_text(recipe.read_text().replace("enabled = true", "enabled = false"))
        Path("net.py").write_text(Path(own_networks.__file__).read_text())
        torch.save(own_networks.Fire().state_dict(), "net.pt")
        Path("data").mkdir()
        for seed, split in enumerate(("train", "test")):
            np.savez(f"data/{split}.npz", **images(seed))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "MODEL", "my-model")
            patch.setattr(demo, "EVALUATION", "data")
            patch.setattr(demo, "_judges", lambda: [("onnx", None), ("integer", "data")])
            yield {name: printed(words) for name, words in RUNS.items()}, folder
    finally:
        os.chdir(before)


def printed(words):
    result = CliRunner().invoke(app, ["--json", *words.split()])
    assert result.exit_code in (0, 2, 3), result.output
    assert result.stdout.count("\n") == 1, result.stdout
    return json.loads(result.stdout)


def problems(name, document):
    validator = jsonschema.Draft202012Validator(schema(name))
    return [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(document)]


def test_every_command_has_a_schema_and_every_schema_is_judged():
    commands = {name.replace(" ", "-") for name in COMMANDS} - {"schema"}
    files = {name for name in RESULTS if name.endswith(".json")}
    assert set(RESULTS) == commands | files | {"error"}
    assert {name.split()[0] for name in RUNS} | set(FILES) == set(RESULTS)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_printed_is_what_the_schema_says(name, outputs):
    document = outputs[0][name]
    assert ("error" in document) == name.startswith("error")
    assert problems(name.split()[0], document) == []


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_what_the_schema_says(name, outputs):
    assert problems(name, json.loads((outputs[1] / FILES[name]).read_text())) == []


@pytest.mark.parametrize("name", [name for name in RUNS if " " not in name])
def test_a_schema_refuses_other_keys_and_types(name, outputs):
    good = outputs[0][name]
    more = {**good, "surprise": 1}
    assert problems(name, more)
    for key, value in good.items():
        less = {k: v for k, v in good.items() if k != key}
        if key not in ("threads", "teacher_accuracy", "earlier"):
            assert problems(name, less), key
        other = "text" if not isinstance(value, str) and value is not None else {"no": ["such"]}
        assert problems(name, {**good, key: other}), key


def test_parts_refuse_other_keys(outputs):
    document = copy.deepcopy(outputs[0]["validate"])
    document["layers"][0]["surprise"] = 1
    assert len(problems("validate", document)) == 1
    document = copy.deepcopy(outputs[0]["check speck2f"])
    assert document["exit_code"] == 2
    document["findings"][0]["severity"] = "grave"
    assert problems("check", document)


def test_the_command_prints_the_schema():
    result = CliRunner().invoke(app, ["schema", "teacher-train"])
    assert json.loads(result.stdout) == schema("teacher-train") and result.stdout.count("\n") > 9
    assert json.loads(CliRunner().invoke(app, ["schema", "zoo", "--json"]).stdout) == schema("zoo")
    unknown = CliRunner().invoke(app, ["schema", "validat"])
    assert unknown.exit_code == 2 and "did you mean 'validate'?" in unknown.stderr
    for name in RESULTS:
        jsonschema.Draft202012Validator.check_schema(schema(name))


def test_the_page_is_written_from_the_schemas():
    assert (DOCS / "json.md").read_text() == json_page.page()
