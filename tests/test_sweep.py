"""Sweeps over time steps and weight bits: intervals, causality, files, bad usage."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import bundles
import numpy as np
import pytest
import random_networks
import typer
from matplotlib import image as png
from typer.testing import CliRunner

from stars_deploy.cli import _global_options_first
from stars_deploy.cli.app import app
from stars_deploy.config.profile import load_profile
from stars_deploy.errors import DoesNotFit, EngineError, InputError
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.simulation.tally import tallies
from stars_deploy.targets.bundle import open_bundle
from stars_deploy.targets.loihi import lower
from stars_deploy.validation.proportions import wilson
from stars_deploy.validation.sweep_plot import sweep_figure
from stars_deploy.workflow import sweep as module
from stars_deploy.workflow.simulate import simulate
from stars_deploy.workflow.sweep import sweep, with_steps, with_weight_bits
from stars_deploy.workflow.sweep_plan import parse_values

LOIHI2 = load_profile("loihi2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return bundles.write_bundle(tmp_path_factory.mktemp("sweep"))


def labelled(folder, graph, images):
    """An npz with the float graph's own predictions as labels, but for every fourth image."""
    answer = FloatEngine(graph).run(images)
    labels = answer.logits.argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % answer.logits.shape[1]
    np.savez(folder / "data.npz", images=images, labels=labels)
    return folder / "data.npz"


def invoke(*words):
    return CliRunner().invoke(app, _global_options_first([str(word) for word in words]))


def by_place(result, engine="integer"):
    return {(x["T"], x["weight_bits"]): x for x in result["points"] if x["engine"] == engine}


# ---- intervals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # z = 1.959964: 8/10: (0.8 + 0.192073 -+ 0.313616) / 1.384146
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),  # z^2/n / (1 + z^2/n)
        (10, 10, 0.722467, 1.0),
        (1, 1, 0.206549, 1.0),
        (900, 1000, 0.879848, 0.917091),
    ],
)
def test_wilson_interval_by_hand(hits, trials, low, high):
    assert wilson(hits, trials) == pytest.approx((low, high), abs=2e-6)


def test_wilson_interval_is_symmetric_and_shrinks():
    low, high = wilson(3, 20)
    assert wilson(17, 20) == pytest.approx((1 - high, 1 - low))
    widths = [np.diff(wilson(n // 2, n))[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(*bad)


# ---- one run tells every T -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_first_steps_of_a_long_float_run_are_the_short_run(seed):
    graph = random_networks.random_graph(seed, steps=(7, 7))
    images = random_networks.random_images(9, random_networks.image_shape(graph), seed)
    wanted = list(range(1, 8))
    found = tallies(FloatEngine(graph), images, wanted, batch=4)
    for steps, tally in zip(wanted, found, strict=True):
        alone = FloatEngine(with_steps(graph, steps)).run(images)
        assert np.array_equal(tally.predictions, alone.logits.argmax(axis=1))
        for node, train in alone.spikes.items():
            assert np.array_equal(tally.spikes[node], train.sum(axis=(0, 1), dtype=np.int64))
    assert 0 < found[0].totals["lif1"] < found[-1].totals["lif1"]


@pytest.mark.parametrize("seed", range(4))
def test_first_steps_of_the_same_integers_are_their_short_run(seed):
    graph = random_networks.random_graph(seed, steps=(8, 8))
    images = random_networks.random_images(5, random_networks.image_shape(graph), seed)
    network = lower(graph, LOIHI2)
    whole = build_engine(network.document, network.arrays).run(images)
    for steps in (1, 3, 8):
        document = json.loads(json.dumps(network.document))
        document["T"] = steps
        for population in document["populations"]:
            population["reset_interval"] = steps
            population["reset_offset"] %= steps
        short = build_engine(document, network.arrays).run(images)
        for node, train in short.spikes.items():
            assert np.array_equal(train, whole.spikes[node][:steps])


def test_integers_depend_on_steps_so_each_point_is_lowered_for_itself(tmp_path):
    graph = random_networks.random_graph(0, blocks=1, pools=False, steps=(4, 4), taus=(2.0,))
    one, eight = (lower(with_steps(graph, t), LOIHI2) for t in (1, 8))
    scales = [x.document["populations"][0]["scale"] for x in (one, eight)]
    assert scales[0] > 1.2 * scales[1]  # fewer steps, a lower potential, finer integers
    write_graph(graph, tmp_path / "net.nir")
    images = random_networks.random_images(8, random_networks.image_shape(graph))
    data = labelled(tmp_path, graph, images)
    result = sweep(tmp_path / "net.nir", "loihi2", tmp_path / "out", "T", [1, 3, 8], data=str(data))
    for steps in (1, 3, 8):
        timed = tmp_path / f"{steps}.nir"
        write_graph(with_steps(graph, steps), timed)
        for engine, bits in (("float", None), ("integer", 8)):
            point = by_place(result, engine)[steps, bits]
            alone = simulate(timed, "loihi2", engine, str(data))
            assert point["accuracy"] == alone["accuracy"] and point["n"] == alone["n"]
            assert point["spikes"] == {x["name"]: x["spikes"] for x in alone["layers"]}
            charged = next(x for x in alone["energy"] if x["name"] == "synaptic_operations")
            operations = point["synaptic_operations"]
            assert charged["value"] == pytest.approx(operations * 23.6 / 1000)


def test_engine_that_tells_no_step_is_refused_not_guessed():
    graph = random_networks.random_graph(1, steps=(4, 4))
    network = lower(graph, LOIHI2)
    images = random_networks.random_images(2, random_networks.image_shape(graph))
    engine = build_engine(network.document, network.arrays)
    assert tallies(engine, images, [4], 2)[0].steps == 4
    for wrong in (engine, FloatEngine(graph)):
        with pytest.raises(EngineError, match="after 5 of its 4 steps"):
            tallies(wrong, images, [5], 2)
    with pytest.raises(EngineError, match="after 2 of its 4 steps"):
        tallies(engine, images, [2], 2)


# ---- weight bits -----------------------------------------------------------------------------


def unmoved_by(bits, graph, images):
    """The images on which integers of so many bits spike exactly as the float graph."""
    network = lower(graph, with_weight_bits(LOIHI2, bits))
    found = build_engine(network.document, network.arrays).run(images).spikes
    expected = FloatEngine(graph).run(images).spikes
    moved = sum(
        (found[node] != train).sum(axis=(0, *range(2, train.ndim)))
        for node, train in expected.items()
    )
    return images[moved == 0]


def test_four_bits_change_spikes_where_eight_do_not(tmp_path):
    graph = random_networks.random_graph(15, blocks=1, pools=False, steps=(4, 4), taus=(2.0,))
    images = random_networks.random_images(40, random_networks.image_shape(graph))
    images = unmoved_by(8, graph, images)
    assert len(images) >= 4
    assert len(unmoved_by(4, graph, images)) < len(images)
    write_graph(graph, tmp_path / "net.nir")
    data = labelled(tmp_path, graph, images)
    result = sweep(
        tmp_path / "net.nir", "loihi2", tmp_path / "out", "bits", bits=[8, 4], data=str(data)
    )
    points = by_place(result)
    assert set(points) == {(4, 4), (4, 8)} and by_place(result, "float") == {}
    reference = result["reference"]
    assert points[4, 8]["spikes"] == reference["spikes"]
    assert points[4, 8]["accuracy"] == reference["accuracy"] and points[4, 8]["agreement"] == 1
    assert points[4, 4]["spikes"] != reference["spikes"]
    # Of n images, every fourth label is wrong on purpose.
    wrong = -(-len(images) // 4)
    assert reference["correct"] == len(images) - wrong
    assert reference["interval"] == list(wilson(len(images) - wrong, len(images)))


def test_fewer_weight_bits_are_a_narrower_range_and_nothing_else():
    graph = bundles.graph()
    for bits in (2, 5, 8):
        network = lower(graph, with_weight_bits(LOIHI2, bits))
        weights = [network.arrays[x["weight_key"]] for x in network.document["connections"]]
        low, high = min(int(w.min()) for w in weights), max(int(w.max()) for w in weights)
        assert -(1 << (bits - 1)) <= low and high <= (1 << (bits - 1)) - 1
        assert max(-low, high) > (1 << (bits - 2)) - 1  # and it is used
    assert LOIHI2.arithmetic.weight_bits.value == 8  # the profile itself is as it was


def test_point_that_does_not_fit_says_why_and_leaves_the_others(exported, tmp_path, monkeypatch):
    def refuses(graph, profile):
        if metadata_of(graph).T == 6:
            raise DoesNotFit("this graph cannot be lowered to loihi2: no scale")
        return lower(graph, profile)

    monkeypatch.setattr("stars_deploy.targets.loihi.lower", refuses)
    result = sweep(exported, "loihi2", tmp_path / "out", "T", [1, 4, 6])
    points = by_place(result)
    assert points[6, 8]["problem"].endswith("no scale") and points[6, 8]["spikes"] is None
    assert points[4, 8]["problem"] is None and points[4, 8]["spikes"]["lif1"] > 0
    assert any(note.startswith("T = 6, 8 bits: not run") for note in result["notes"])
    with pytest.raises(DoesNotFit, match="no scale"):
        sweep(exported, "loihi2", tmp_path / "all", "T", [6])
    assert not (tmp_path / "all").exists()


# ---- the command -----------------------------------------------------------------------------


def test_command_writes_one_document_and_one_figure(exported, tmp_path):
    out = tmp_path / "out"
    words = ("--steps", "1,4", "--bits", "4,8", "--json")
    done = invoke("sweep", exported, "--profile", "loihi2", *words, "--out", out)
    assert done.exit_code == 0, done.output
    written = json.loads((out / "sweep.json").read_text())
    assert json.loads(done.stdout) == written
    assert sorted(path.name for path in out.iterdir()) == ["sweep.json", "sweep.png"]
    assert set(by_place(written)) == {(1, 8), (4, 4), (4, 8)}
    assert set(by_place(written, "float")) == {(1, None), (4, None)}
    point = by_place(written)[4, 8]
    golden = simulate(exported, "loihi2")
    assert point["spikes"] == {x["name"]: x["spikes"] for x in golden["layers"]}
    assert point["spikes_per_image"] == pytest.approx(sum(point["spikes"].values()) / 16)
    assert point["accuracy"] is None and 0 < point["agreement"] <= 1  # random images
    low, high = point["agreement_interval"]
    assert low < point["agreement"] <= high
    assert written["versions"]["stars_deploy"] == written["tool_version"]
    assert written["command"].startswith("stars-deploy sweep bundle --profile loihi2")
    assert str(tmp_path) not in (out / "sweep.json").read_text()
    assert "no labels: agreement" in done.stderr and "points wide" in done.stderr
    picture = png.imread(io.BytesIO((out / "sweep.png").read_bytes()))
    assert picture.shape[0] > 600 and picture.shape[1] > 900
    open_bundle(exported)  # a sweep leaves the bundle's seal whole


def test_same_sweep_gives_the_same_bytes(exported, tmp_path):
    for name in ("a", "b"):
        sweep(exported, "loihi2", tmp_path / name / "out", "T", [1, 2], limit=3)
    for file in ("sweep.json", "sweep.png"):
        first, second = ((tmp_path / name / "out" / file).read_bytes() for name in ("a", "b"))
        assert first == second


def test_float_engine_sweeps_steps_only(exported, tmp_path):
    result = sweep(exported, "reference", tmp_path / "out", steps=[1, 2])
    assert result["bits"] == [] and by_place(result) == {}
    assert set(by_place(result, "float")) == {(1, None), (2, None)}
    assert result["reference"]["T"] == 4 and result["reference"]["agreement"] == 1


def test_figure_shows_what_ran(exported, tmp_path):
    result = sweep(exported, "loihi2", tmp_path / "out", "both", [4], [8])
    whole = sweep_figure(result)
    assert whole == (tmp_path / "out" / "sweep.png").read_bytes()
    for point in result["points"]:
        if point["engine"] == "integer":
            point.update(spikes=None, spikes_per_image=None, agreement=None)
    assert sweep_figure(result) != whole


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bits", "9"), ("--bits 9", "weights of 8 bits", "2 to 8")),
        (("--bits", "1"), ("--bits 1", "2 to 8")),
        (("--steps", "0"), ("--steps 0", "from 1 to 1024")),
        (("--steps", "-1,2"), ("--steps -1",)),
        (("--steps", "four"), ("--steps 'four'", "whole numbers such as")),
        (("--over", "bit"), ("--over 'bit' is unknown", "bits")),
        (("--over", "T", "--bits", "4"), ("--bits", "--over both")),
        (("--over", "bits", "--steps", "4"), ("--steps", "--over both")),
        (("--engine", "lava"), ("--engine 'lava'", "float or integer")),
        (("--engine", "float", "--over", "bits"), ("no weight bits",)),
        (("--engine", "integer", "--profile", "reference"), ("Loihi profile",)),
        (("--limit", "17"), ("16 images", "--data")),
    ],
)
def test_bad_usage_is_named_and_writes_nothing(exported, tmp_path, words, says):
    failed = invoke("sweep", exported, *words, "--out", tmp_path / "out")
    assert failed.exit_code == 2, failed.output
    for part in says:
        assert part in failed.stderr, failed.stderr
    assert not (tmp_path / "out").exists()


def test_numbers_are_sorted_and_each_taken_once():
    assert parse_values("8,1, 4,8", "--steps") == (1, 4, 8)


def test_out_destroys_nothing_that_no_sweep_made(exported, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "sweep.png").write_bytes(b"mine")
    sealed = shutil.copytree(exported, tmp_path / "sealed")
    refused = ((file, "not a folder"), (foreign, "no sweep wrote"), (sealed / "x", "unseal"))
    for out, says in (*refused, (sealed, "unseal")):
        with pytest.raises(InputError, match=says):
            sweep(exported, "loihi2", out, "T", [1])
    assert file.read_text() == "mine" and (foreign / "sweep.png").read_bytes() == b"mine"
    open_bundle(sealed)
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")
    for steps in ([1], [2]):  # a sweep replaces a sweep, and nothing else
        sweep(exported, "loihi2", beside, "T", steps, limit=2)
        assert json.loads((beside / "sweep.json").read_text())["steps"] == steps
    assert (beside / "notes.txt").read_text() == "mine"


def test_interrupted_sweep_leaves_the_earlier_one(exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sweep(exported, "loihi2", out, "T", [1], limit=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*arguments):
        raise KeyboardInterrupt

    for name in ("sweep_figure", "json_text"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            stopped = invoke("sweep", exported, "--over", "T", "--steps", "2", "--out", out)
        assert stopped.exit_code == 130
        assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_graph_of_another_t_differs_in_t_only():
    graph = bundles.graph()
    changed = with_steps(graph, 9)
    assert metadata_of(changed).T == 9 and metadata_of(graph).T == 4
    assert changed.nodes == graph.nodes and changed.edges == graph.edges


def test_graph_read_from_a_bundle_is_swept_like_its_file(exported, tmp_path):
    write_graph(read_graph(exported / "graph.nir"), tmp_path / "net.nir")
    images = random_networks.random_images(4, random_networks.image_shape(bundles.graph()))
    data = labelled(tmp_path, bundles.graph(), images)
    results = [
        sweep(source, "loihi2", tmp_path / str(index), "both", [2], [4], data=str(data))
        for index, source in enumerate((exported, tmp_path / "net.nir"))
    ]
    assert results[0]["points"] == results[1]["points"]


def test_page_about_sweeps_names_what_there_is(exported, tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    result = sweep(exported, "loihi2", tmp_path / "out", "T", [1], limit=1)
    assert all(sorted(named) == sorted(point) for point in result["points"])
    commands = re.findall(r"^stars-deploy (sweep .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    group = typer.main.get_command(app)
    for line in commands:
        name, *arguments = shlex.split(line)
        assert group.commands[name].make_context(name, arguments).params["out"]


def test_a_graph_of_another_tool_is_sent_to_export(tmp_path):
    source = Path(__file__).parent / "data" / "foreign" / "spikingjelly.nir"
    for command in (["sweep", "--steps", "4"], ["finetune"]):
        arguments = [command[0], str(source), *command[1:], "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, arguments)
        # --steps of a sweep is what it varies: telling to add it would lead nowhere.
        assert result.exit_code == 2 and "stars-deploy export" in result.stderr
        assert "add --steps" not in result.stderr
