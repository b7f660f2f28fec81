"""Comparisons: what a grid is, which statistics it gives, and how it goes on."""

import json

import numpy as np
import pytest
from tiny_distillation import tiny_model

from stars_deploy.config.recipe import load_recipe
from stars_deploy.errors import InputError
from stars_deploy.workflow.compare import compare, markdown
from stars_deploy.workflow.grid import parse_seeds, parse_vary
from stars_deploy.workflow.statistics import paired, spread


def test_a_grid_is_the_product_of_its_axes_first_values_first():
    cells = parse_vary(["stars=on,off", "method=nayer,cmi"])
    assert [cell.name for cell in cells] == [
        "stars=on, method=nayer",
        "stars=on, method=cmi",
        "stars=off, method=nayer",
        "stars=off, method=cmi",
    ]
    assert cells[3].overrides == ("stars.enabled=false", 'synthesis.method="cmi"')


def test_lists_are_values_and_every_cell_is_a_recipe():
    (one, two) = parse_vary(["stars.quantiles=[0.9, 0.95],[0.6]"])
    assert load_recipe("fashion-mnist", one.overrides).stars.quantiles == (0.9, 0.95)
    assert load_recipe("fashion-mnist", two.overrides).stars.quantiles == (0.6,)
    (a, b) = parse_vary(['stars.layers=all|["lif1", "lif6"]'])
    assert load_recipe("fashion-mnist", a.overrides).stars.layers == "all"
    assert load_recipe("fashion-mnist", b.overrides).stars.layers == ("lif1", "lif6")


def test_a_whole_section_is_a_value():
    (off, on) = parse_vary(["stars={enabled = false}|{balance = 1.0, quantiles = [0.5, 0.9]}"])
    assert not load_recipe("fashion-mnist", off.overrides).stars.enabled
    chosen = load_recipe("fashion-mnist", on.overrides).stars
    assert chosen.enabled and chosen.balance == 1.0 and chosen.quantiles == (0.5, 0.9)
    assert on.name == "stars={balance = 1.0, quantiles = [0.5, 0.9]}"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["stars"], "expected key=value"),
        (["stars=on"], "at least two"),
        (["stars=on,on"], "given twice"),
        (["stars=on,off", "stars.enabled=true,false"], "varied twice"),
    ],
)
def test_grids_that_make_no_sense(texts, message):
    with pytest.raises(InputError, match=message):
        parse_vary(texts)


def test_a_wrong_value_of_a_cell_is_said_to_be_varied(tmp_path):
    with pytest.raises(InputError, match=r"^--vary kd\.lr=-1: key 'kd\.lr'"):
        compare("fashion-mnist", ["kd.lr=0.1,-1"], [0], "evaluation", tmp_path / "out")
    with pytest.raises(InputError, match=r"^--set kd\.tau=0: key 'kd\.tau'"):
        words = ("fashion-mnist", ["kd.lr=0.1,0.2"], [0], "evaluation", tmp_path / "out")
        compare(*words, ["kd.tau=0"])


def test_seeds():
    assert parse_seeds("0,3,5-7") == [0, 3, 5, 6, 7]
    with pytest.raises(InputError, match="seed 3 is given twice"):
        parse_seeds("3,1-4")
    for text in ("a", "0,3-1", "0-99999999999"):
        with pytest.raises(InputError, match="expected numbers"):
            parse_seeds(text)


def test_spread_and_paired_difference_by_hand():
    assert spread([1.0, 2.0, 3.0]) | {"values": 0} == {"mean": 2, "sd": 1, "n": 3, "values": 0}
    assert spread([5.0])["sd"] is None
    found = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert found["mean"] == 1 and found["sd"] == 0 and found["interval"] == [1, 1]
    assert paired([1.0, 2.0], [0.0, 0.0])["interval"] is None
    low, high = paired([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])["interval"]
    # 1/27 of all resamples are (1, 1, 1) and as many (6, 6, 6): beyond 2.5 % on either side
    assert (low, high) == (1, 6)


@pytest.fixture
def model(tmp_path):
    path = tiny_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        images=rng.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8),
        labels=rng.integers(0, 3, 30),
    )
    return path


def test_a_comparison_goes_on_where_it_stopped_and_adds_seeds(model, tmp_path):
    out, data = tmp_path / "out", str(tmp_path / "data.npz")
    first = compare(str(model), ["stars=on,off"], [0, 1], data, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("student.safetensors")}
    assert len(stamps) == 4
    again = compare(str(model), ["stars=on,off"], [0, 1, 2], data, out)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    for before, after in zip(first["cells"], again["cells"], strict=True):
        assert after["runs"][:2] == before["runs"]
        assert len(after["runs"]) == 3 and len(after["runs"][0]["accuracy_by_epoch"]) == 3
    assert again["cells"][1]["difference"]["n"] == 3
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(again))
    assert "stars=off" in markdown(again) and "baseline" in markdown(again)
    with pytest.raises(InputError, match="another grid"):
        compare(str(model), ["stars=off,on"], [0], data, out)
    with pytest.raises(InputError, match=r"no grid\.json"):
        compare(str(model), [], [0], data, model.parent)


def test_the_last_accuracy_is_that_of_the_saved_student(model, tmp_path):
    from stars_deploy.workflow.evaluate import evaluate

    out, data = tmp_path / "out", str(tmp_path / "data.npz")
    result = compare(str(model), ["kd.lr=0.02,0.05"], [3], data, out)
    for row, lr in zip(result["cells"], ("0.02", "0.05"), strict=True):
        saved = evaluate(out / "runs" / f"kd.lr={lr}" / "seed3", data)
        assert row["runs"][0]["last"] == saved["accuracy"]
        assert row["last"]["sd"] is None and row["best"]["mean"] >= row["last"]["mean"]


@pytest.mark.parametrize(
    "vary",
    [
        ["stars.rca=0,1", "stars={enabled=true}|{balance=1.0}"],  # the braces undo the first
        ["run.seed=0,1"],
        ["T=2|'2'"],
        ["name=x,y"],
    ],
)
def test_settings_that_are_the_same_run_are_no_comparison(model, tmp_path, vary):
    with pytest.raises(InputError, match="are the same run"):
        compare(str(model), vary, [0], str(tmp_path / "data.npz"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_comparison_has_one_teacher(model, tmp_path):
    vary = ["teacher.weights=teacher.safetensors|other.safetensors"]
    with pytest.raises(InputError, match="one teacher"):
        compare(str(model), vary, [0], str(tmp_path / "data.npz"), tmp_path / "out")


def test_other_images_under_the_same_name_are_another_comparison(model, tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "out"
    compare(str(model), [], [0], str(data), out)
    held = dict(np.load(data))
    np.savez(data, images=held["images"], labels=np.roll(held["labels"], 1))
    with pytest.raises(InputError, match="images_sha256"):
        compare(str(model), [], [0], str(data), out)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"seed": 1, "last": 0.5}', "{"])
def test_a_damaged_result_is_named(model, tmp_path, content):
    data, out = str(tmp_path / "data.npz"), tmp_path / "out"
    compare(str(model), [], [0], data, out)
    (result,) = out.rglob("result.json")
    kept = result.read_text()
    result.write_text(content)
    with pytest.raises(InputError, match=r"result\.json: not "):
        compare(str(model), [], [0], data, out)
    result.unlink()  # the run is complete, but nobody knows the accuracies of its epochs
    with pytest.raises(InputError, match="accuracies of epochs 1 to 3"):
        compare(str(model), [], [0], data, out)
    (result.parent.parent / "seed0.epochs.json").write_text(content)
    with pytest.raises(InputError, match=r"epochs\.json"):
        compare(str(model), [], [0], data, out)
    result.write_text(kept)
    (out / "grid.json").write_text(content)
    with pytest.raises(InputError, match=r"grid\.json: not |another grid"):
        compare(str(model), [], [0], data, out)
