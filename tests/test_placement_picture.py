"""The picture of the chips, and what `check` prints and writes about a placement."""

import json

import numpy as np
import pytest
from lowered_shapes import Document, s_resnet19
from matplotlib import image as png
from test_check_findings import if_chain, small
from test_placement import chip, placed
from typer.testing import CliRunner

from stars_deploy.cli.app import app
from stars_deploy.config.profile import load_profile
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.placement.place import place
from stars_deploy.validation.placement_picture import _colours, draw_placement, fullness


def pixels(path):
    return (png.imread(path)[..., :3] * 255).round().astype(np.uint8).reshape(-1, 3)


def shows(path, colour):
    return (np.abs(pixels(path).astype(int) - np.array(colour) * 255).max(axis=1) <= 2).mean()


def test_every_population_has_its_colour_and_its_share(tmp_path):
    built = Document((4,))
    built.dense("input", "a", 60)
    built.dense("a", "b", 20)
    profile = chip(neurons_per_core=20, cores_per_chip=8)
    result = placed(built, profile)
    draw_placement(result, profile.limits, tmp_path / "cores.png")
    first, second = _colours(2)
    a, b = (shows(tmp_path / "cores.png", colour) for colour in (first, second))
    assert 2 < a / b < 4  # three full cores against one, besides the legend
    assert [fullness(part, profile.limits) for p in result.populations for part in p.parts] == [
        1
    ] * 4


def test_a_core_is_filled_up_to_its_share(tmp_path):
    (colour,) = _colours(1)
    areas = []
    for held in (20, 40):  # full, half full
        built = Document((4,))
        built.dense("input", "a", 20)
        profile = chip(neurons_per_core=held, cores_per_chip=1)
        draw_placement(placed(built, profile), profile.limits, tmp_path / f"{held}.png")
        areas.append(shows(tmp_path / f"{held}.png", colour))
    assert 0.4 < areas[1] / areas[0] < 0.8  # the legend's patch is the same in both


def test_many_chips_are_drawn_and_more_are_left_out(tmp_path):
    document, arrays = s_resnet19()
    kapoho = load_profile("loihi2-kapoho-point")
    result = place(document, arrays, kapoho)
    draw_placement(result, kapoho.limits, tmp_path / "many.png")
    assert len(np.unique(pixels(tmp_path / "many.png"), axis=0)) > 2 * len(result.populations)
    wide = Document((4,))
    wide.dense("input", "a", 500)
    draw_placement(placed(wide, chip(neurons_per_core=1, cores_per_chip=2)),
                   chip(cores_per_chip=2).limits, tmp_path / "more.png")  # fmt: skip
    assert (tmp_path / "more.png").stat().st_size > 0


def test_an_unwritable_picture_is_an_error(tmp_path):
    built = Document((4,))
    built.dense("input", "a", 4)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        draw_placement(placed(built, chip()), chip().limits, tmp_path / "file" / "cores.png")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_check_shows_the_placement_and_draws_it(tmp_path):
    write_graph(small(), tmp_path / "graph.nir")
    words = ("check", tmp_path / "graph.nir", "--profile", "loihi2")
    result = invoke("--json", *words, "--picture", tmp_path / "cores.png")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)["placement"]
    assert [entry["name"] for entry in shown["populations"]] == ["lif1", "lif2", "fc"]
    assert shown["totals"]["cores"] == sum(entry["cores"] for entry in shown["populations"]) == 3
    assert shown["totals"]["neurons"] == sum(entry["neurons"] for entry in shown["populations"])
    assert shown["core_limits"]["neurons"] == 8192 and shown["core_limits"]["input_axons"] is None
    assert png.imread(tmp_path / "cores.png").shape[0] > 100
    assert "Placement on loihi2: 3 of 120 cores" in result.stderr


def test_check_without_a_placement_says_so(tmp_path):
    write_graph(small(), tmp_path / "graph.nir")
    picture = tmp_path / "cores.png"
    result = invoke("check", tmp_path / "graph.nir", "--profile", "speck2f", "--picture", picture)
    assert result.exit_code == 2 and not picture.exists()
    assert "is not written" in result.stderr
    write_graph(if_chain(), tmp_path / "if.nir")
    result = invoke("check", tmp_path / "if.nir", "--profile", "speck2f", "--picture", picture)
    assert result.exit_code == 4 and picture.is_file()


def check_with_picture(source, picture):
    return CliRunner().invoke(app, ["check", str(source), "--picture", str(picture)])


def test_a_picture_replaces_nothing_but_a_picture(tmp_path):
    net = tmp_path / "net.nir"
    write_graph(small(), net)
    content = net.read_bytes()
    result = check_with_picture(net, net)
    assert result.exit_code == 2 and "no picture of stars-deploy check" in result.stderr
    assert net.read_bytes() == content
    result = check_with_picture(net, tmp_path)
    assert result.exit_code == 2 and "no picture of stars-deploy check" in result.stderr
    for _ in range(2):
        assert check_with_picture(net, tmp_path / "a b \u00fc" / "cores.png").exit_code == 0


def test_nothing_is_written_into_a_bundle(tmp_path):
    net, bundle = tmp_path / "net.nir", tmp_path / "bundle"
    write_graph(small(), net)
    runner = CliRunner()
    export = ["export", str(net), "--target", "nir", "--golden", "2", "--out"]
    assert runner.invoke(app, [*export, str(bundle)]).exit_code == 0
    result = check_with_picture(net, bundle / "cores.png")
    assert result.exit_code == 2 and "inside the bundle" in result.stderr
    result = runner.invoke(app, [*export, str(bundle / "inner")])
    assert result.exit_code == 2 and "inside the bundle" in result.stderr
    assert runner.invoke(app, ["check", str(bundle)]).exit_code == 0


def test_a_chip_of_very_many_cores_is_drawn_in_part(tmp_path):
    built = Document((4,))
    built.dense("input", "a", 60)
    profile = chip(neurons_per_core=1, cores_per_chip=1 << 20)
    result = placed(built, profile)
    draw_placement(result, profile.limits, tmp_path / "cores.png")
    height, width = png.imread(tmp_path / "cores.png").shape[:2]
    assert max(height, width) < 130 * 50
