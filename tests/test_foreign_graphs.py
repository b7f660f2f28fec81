"""Graphs that other tools wrote: two real files spike for spike, each convention, each refusal."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import random_networks
from test_cli import fails, invoke

from stars_deploy.cli.reading import reading_options
from stars_deploy.errors import GraphError, InputError
from stars_deploy.graph.canonical import canonical
from stars_deploy.graph.foreign import Reading, adopt
from stars_deploy.graph.metadata import DT, GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.reader import load_graph
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.bundle import read_golden
from stars_deploy.validation.engines import build_engine
from stars_deploy.workflow.export import write_onnx
from stars_deploy.workflow.reading import parse_reading
from stars_deploy.workflow.samples import golden_samples, lively_images

FOLDER = Path(__file__).parent / "data" / "foreign"
TOOLS = ("spikingjelly", "snntorch")
STEPS = 6  # of the recordings
Nodes = dict[str, nir.NIRNode]


def recorded(tool: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{tool}.npz") as archive:
        return dict(archive)


def read(graph: nir.NIRGraph, **said: Any) -> nir.NIRGraph:
    """The graph as read; there must be no problem."""
    adopted = adopt(graph, Reading(**said))
    assert not adopted.problems, [str(problem) for problem in adopted.problems]
    return canonical(adopted.graph)


def refused(graph: nir.NIRGraph, **said: Any) -> str:
    problems = adopt(graph, Reading(**said)).problems
    assert problems
    return "\n".join(map(str, problems))


def notes(graph: nir.NIRGraph, **said: Any) -> dict[str, str]:
    return {note.code: str(note) for note in adopt(graph, Reading(**said)).notes}


def chain(*layers: tuple[str, nir.NIRNode], shape=(1, 4, 4), out=(3,), metadata=None):
    """input -> layers -> output, unchecked, as a file would hold it."""
    nodes: Nodes = {"input": nir.Input({"input": np.array(shape)}), **dict(layers)}
    nodes["output"] = nir.Output({"output": np.array(out)})
    edges = list(itertools.pairwise(nodes))
    return nir.NIRGraph(nodes, edges, metadata=metadata or {}, type_check=False)


def neuron(shape=(16,), tau=2.0, r=1.0, dt=DT, kind: Any = nir.LIF, **changes: Any) -> nir.NIRNode:
    values: dict[str, Any] = {"tau": tau * dt, "r": r, "v_leak": 0.0, "v_threshold": 0.3}
    if kind is nir.IF:
        values = {"r": r, "v_threshold": 0.3}
    if kind is nir.LI:
        del values["v_threshold"]
    return kind(**{key: np.full(shape, value) for key, value in {**values, **changes}.items()})


def flat(start: int = 0) -> nir.Flatten:
    return nir.Flatten({"input": None}, start, -1)


def dense(inputs: int = 16, outputs: int = 3) -> nir.Linear:
    rng = np.random.default_rng(inputs)
    return nir.Linear(rng.normal(0.2, 0.5, (outputs, inputs)))


def small(lif: nir.NIRNode, **choices: Any) -> nir.NIRGraph:
    """[1, 4, 4] -> flatten -> neurons -> dense, a whole classifier."""
    return chain(("flat", flat()), ("lif", lif), ("fc", dense()), **choices)


def images(count: int = 5, shape=(1, 4, 4)) -> np.ndarray:
    return random_networks.random_images(count, shape, 3)


def trains(graph: nir.NIRGraph, pixels: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
    return FloatEngine(graph).run(images() if pixels is None else pixels).spikes


# ---- real files --------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_our_engine_gives_the_spikes_of_the_tool_that_wrote_the_file(tool: str) -> None:
    theirs = recorded(tool)
    ours = FloatEngine(read(load_graph(FOLDER / f"{tool}.nir"), T=STEPS)).run(theirs["images"])
    assert sorted(f"spikes.{node}" for node in ours.spikes) == sorted(
        key for key in theirs if key.startswith("spikes.")
    )
    for node, train in ours.spikes.items():
        assert 0.02 < train.mean() < 0.6
        np.testing.assert_array_equal(train, theirs[f"spikes.{node}"], node)
    np.testing.assert_allclose(ours.logits, theirs["logits"], atol=1e-6)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_wrong_time_step_would_be_seen(tool: str) -> None:
    theirs = recorded(tool)
    wrong = read(load_graph(FOLDER / f"{tool}.nir"), T=STEPS, dt=5e-5, gain="raw")
    ours = trains(wrong, theirs["images"])
    assert any((train != theirs[f"spikes.{node}"]).any() for node, train in ours.items())


@pytest.mark.parametrize("tool", TOOLS)
def test_real_file_from_check_to_verdict(tool: str, tmp_path: Path) -> None:
    file, out = FOLDER / f"{tool}.nir", tmp_path / "bundle"
    said = ("--steps", STEPS)
    found = json.loads(invoke("--json", "check", file, *said, "--profile", "reference").stdout)
    assert found["exit_code"] == 0
    assert {"dt", "normalisation", "readout"} == {item["code"] for item in found["findings"]}
    golden = ("--golden-images", FOLDER / f"{tool}.npz", "--golden", 4)
    targets = ("--target", "nir", "--target", "onnx")
    made = invoke("export", file, *said, *targets, *golden, "--out", out)
    assert made.exit_code == 0, made.output
    for words in ("dt = 0.0001 s follows", "pixel / 255 enters as it is", "mean over 6 steps"):
        assert words in " ".join(made.stderr.split())
    metadata = metadata_of(load_graph(out / "graph.nir"))
    assert (metadata.T, metadata.dt, metadata.mean, metadata.std) == (STEPS, DT, (0.0,), (1.0,))
    kept = read_golden(out / "golden.npz")
    assert kept.source == "file" and (kept.labels == -1).all()
    for node, train in kept.spikes["float"].items():
        np.testing.assert_array_equal(train, recorded(tool)[f"spikes.{node}"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert any("dt = 0.0001 s" in line for line in manifest["source"]["read_as"])
    for engine in ("float", "onnx"):
        run = invoke("--json", "simulate", out, "--profile", "reference", "--engine", engine)
        spikes = {layer["name"]: layer["spikes"] for layer in json.loads(run.stdout)["layers"]}
        assert spikes == {
            key.removeprefix("spikes."): int(train.sum())
            for key, train in recorded(tool).items()
            if key.startswith("spikes.")
        }
    verdict = invoke("validate", out, "--profile", "reference", "--engine", "onnx")
    assert verdict.exit_code == 0, verdict.output


@pytest.mark.parametrize("tool", TOOLS)
def test_real_file_becomes_integers_for_a_chip(tool: str, tmp_path: Path) -> None:
    """check, simulate, export and validate with Loihi's integers, which stay near the float's."""
    file, out = FOLDER / f"{tool}.nir", tmp_path / "bundle"
    said = ("--steps", 4)
    found = json.loads(invoke("--json", "check", file, *said, "--profile", "loihi2").stdout)
    assert found["exit_code"] == 0 and found["placement"]["totals"]["cores"] >= 3
    run = json.loads(invoke("--json", "simulate", file, *said, "--profile", "loihi2").stdout)
    assert run["engine"]["name"] == "integer"
    made = invoke("export", file, *said, "--target", "loihi", "--out", out)
    assert made.exit_code == 0, made.output
    document = json.loads((out / "loihi" / "network.json").read_text())
    kind = {"spikingjelly": "spikes", "snntorch": "potential"}[tool]
    assert document["readout"]["kind"] == kind
    verdict = invoke("validate", out, "--profile", "loihi2")
    assert verdict.exit_code == 0, verdict.output
    result = json.loads((out / "validation.json").read_text())
    assert all(layer["state"] == "active" for layer in result["layers"])
    assert result["agreement"] >= 0.8  # random weights: logits lie close together


# ---- time and gain -----------------------------------------------------------------------------


def test_missing_steps_are_asked_for_by_option() -> None:
    file = FOLDER / "snntorch.nir"
    for command in (("simulate",), ("export", "--target", "nir", "--out", "never")):
        fails(2, command[0], file, *command[1:], says=["how many time steps", "add --steps T"])
    found = json.loads(invoke("--json", "check", file).stdout)
    assert found["exit_code"] == 2
    assert [f["remedy"] for f in found["findings"] if f["severity"] == "error"] == ["add --steps T"]


def test_dt_follows_from_r_only_where_that_is_certain() -> None:
    assert metadata_of(read(small(neuron(tau=4.0, r=4.0)), T=3)).dt == DT
    text = refused(small(neuron(tau=4.0, r=4.0, dt=1e-3)), T=3)
    assert "tau / r is 0.001 s, which may be it or not; add --dt 0.001" in text
    two = chain(
        ("flat", flat()), ("a", neuron(tau=4.0, r=4.0, dt=1e-3)),
        ("b", neuron(tau=2.0, r=2.0, dt=1e-3)), ("fc", dense()),
    )  # fmt: skip
    assert metadata_of(read(two, T=3)).dt == 1e-3
    assert "0.001 s follows" in notes(two, T=3)["dt"]
    mixed = chain(
        ("flat", flat()), ("a", neuron(tau=4.0, r=4.0)), ("b", neuron(r=5.0)), ("fc", dense())
    )
    text = refused(mixed, T=3)
    assert "disagree" in text and "0.0001 s (a)" in text and "4e-05 s (b)" in text
    assert "add --dt SECONDS" in text
    assert "r = 1 gives no hint; add --dt" in refused(small(neuron()), T=3)
    assert metadata_of(read(mixed, T=3, dt=2e-5)).dt == 2e-5


def test_r_as_resistance_and_r_folded_are_one_equation() -> None:
    """r = tau / dt with weights W / tau is r = 1 with W: the same spikes."""
    weight = np.random.default_rng(1).normal(0.3, 0.6, (16, 16))
    raw = chain(("flat", flat()), ("a", nir.Linear(weight)), ("lif", neuron()), ("fc", dense()))
    folded = chain(
        ("flat", flat()), ("a", nir.Linear(weight / 2)), ("lif", neuron(r=2.0)), ("fc", dense())
    )
    one, other = read(raw, T=5, dt=DT), read(folded, T=5)
    assert (metadata_of(one).gain, metadata_of(other).gain) == ("raw", "folded")
    assert trains(one)["lif"].any()
    np.testing.assert_array_equal(trains(one)["lif"], trains(other)["lif"])


def test_float32_time_constants_keep_their_steps() -> None:
    lif = neuron(tau=2.0, r=2.0)
    lif = nir.LIF(**{
        field: np.float32(getattr(lif, field))
        for field in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    })  # fmt: skip
    graph = read(small(lif), T=2)
    assert (graph.nodes["lif"].tau / metadata_of(graph).dt == 2.0).all()


@pytest.mark.parametrize("dt", [1e-3, 1.2345678e-3])
def test_an_inferred_step_is_the_one_the_exporter_had(dt: float) -> None:
    graph = chain(
        ("flat", flat()), ("a", neuron(tau=4.0, r=4.0, dt=dt)),
        ("b", neuron(tau=2.5, r=2.5, dt=dt)), ("fc", dense()),
    )  # fmt: skip
    found = read(graph, T=2)
    assert metadata_of(found).dt == pytest.approx(dt, rel=1e-12)
    assert metadata_of(found).gain == "folded"


def test_gain_discrete_is_the_factor_of_one_step() -> None:
    """H = V + 1 X - V / 2 with r = 1: what r = 2 means in NIR's equation."""
    one = read(small(neuron(r=1.0)), T=4, dt=DT, gain="discrete")
    other = read(small(neuron(r=2.0)), T=4)
    np.testing.assert_array_equal(one.nodes["lif"].r, other.nodes["lif"].r)
    assert metadata_of(one).gain == "folded"


@pytest.mark.parametrize(
    ("r", "said", "per_step"),
    [
        (1.0, {}, 1.0),
        (1e4, {}, 1.0),
        (1.0, {"dt": 0.5, "gain": "raw"}, 0.5),
        (3.0, {"dt": 0.5, "gain": "discrete"}, 3.0),
        (3.0, {"dt": 0.5, "gain": "raw"}, 1.5),
    ],
)
def test_r_of_an_if_neuron(r: float, said: Any, per_step: float) -> None:
    graph = read(small(neuron(kind=nir.IF, r=r)), T=2, **said)
    np.testing.assert_array_equal(graph.nodes["lif"].r, np.full(16, per_step))


def test_r_of_an_if_neuron_that_can_be_either_is_asked_for() -> None:
    text = refused(small(neuron(kind=nir.IF, r=3.0)), T=2, dt=0.5)
    assert text.startswith("lif: r is 3") and "--gain raw" in text and "--gain discrete" in text


def test_tau_shorter_than_a_step_is_refused() -> None:
    text = refused(small(neuron(tau=2.0)), T=2, dt=1e-3)
    assert text.startswith("lif: tau is 0.0002 s, shorter than the step of 0.001 s")
    assert "--dt" in text


def cuba(tau_syn: float, w_in: float = 1.0, r: float = 2.0) -> nir.CubaLIF:
    shape = (16,)
    return nir.CubaLIF(
        tau_syn=np.full(shape, tau_syn * DT), tau_mem=np.full(shape, 2 * DT),
        r=np.full(shape, r), v_leak=np.zeros(shape), v_threshold=np.full(shape, 0.3),
        w_in=np.full(shape, w_in),
    )  # fmt: skip


def test_a_synapse_without_memory_is_a_lif() -> None:
    one = read(small(cuba(1.0, w_in=1.5)), T=4, dt=DT)
    other = read(small(neuron(r=3.0)), T=4, dt=DT)
    assert "read as LIF" in notes(small(cuba(1.0)), T=4)["synapse"]
    assert trains(one)["lif"].any()
    np.testing.assert_array_equal(trains(one)["lif"], trains(other)["lif"])
    text = refused(small(cuba(2.0, w_in=2.0)), T=4)
    assert text.startswith("lif: node type CubaLIF is not supported; use LIF, or tau_syn = dt")


def test_norse_is_read_with_the_square_of_its_time_step() -> None:
    """Norse's node, by its own mapping, against Norse's own step: V += dt tau_mem_inv (X - V)."""
    import norse.torch as norse
    import torch
    from norse.torch.utils.export_nir import _extract_norse_module

    parameters = norse.LIFBoxParameters(
        tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(0.3), v_leak=torch.tensor(0.0)
    )
    cell = norse.LIFBoxCell(p=parameters, dt=1e-3)
    theirs = _extract_norse_module(cell, dt=1e-3)
    lif = nir.LIF(*(np.asarray(getattr(theirs, f)) for f in ("tau", "r", "v_leak", "v_threshold")))
    pixels, state, spikes = images(), norse.LIFBoxFeedForwardState(torch.zeros(5, 16)), []
    x = torch.from_numpy(pixels.reshape(5, 16) / 255).float()
    for _ in range(STEPS):
        z, state = cell(x, state)
        spikes.append(z.numpy())
    assert 0.02 < np.mean(spikes) < 0.6
    ours = trains(read(small(lif), T=STEPS, dt=1e-6), pixels)["lif"]
    np.testing.assert_array_equal(ours, np.stack(spikes))


# ---- what the file says and what the user says -------------------------------------------------


def test_a_value_in_the_file_wins_and_a_contradiction_names_both() -> None:
    graph = small(neuron(), metadata={"T": 7, "dt": DT, "mean": 0.25})
    assert (metadata_of(read(graph)).T, metadata_of(read(graph)).mean) == (7, (0.25,))
    assert metadata_of(read(graph, T=7, std=(0.5,))).std == (0.5,)
    text = refused(graph, T=8)
    assert "--steps is 8" in text and "T = 7" in text
    assert "--mean is (0.5,)" in refused(graph, mean=(0.5,))
    assert "--dt is 0.001" in refused(graph, dt=1e-3)
    own = with_metadata(small(neuron()), GraphMetadata(T=2, mean=(0.0,), std=(1.0,)))
    assert "--steps is 3" in refused(own, T=3)
    assert not adopt(own, Reading(T=2)).problems
    assert "--gain is for files of other tools" in refused(own, gain="raw")


def test_normalisation_and_classes() -> None:
    graph = read(small(neuron()), T=2, dt=DT, mean=(0.5,), std=(0.25,), classes=("a", "b", "ç"))
    metadata = metadata_of(graph)
    assert (metadata.mean, metadata.std, metadata.classes) == ((0.5,), (0.25,), ("a", "b", "ç"))
    # The neurons see (x - 0.5) / 0.25.
    bare = read(small(neuron(v_threshold=0.2)), T=1, dt=DT)
    scaled = read(small(neuron(v_threshold=0.2)), T=1, dt=DT, mean=(0.5,), std=(0.25,))
    x = images() / 255
    np.testing.assert_array_equal(trains(bare)["lif"][0], x.reshape(5, 16) / 2 > 0.2)
    np.testing.assert_array_equal(
        trains(scaled)["lif"][0], ((x - 0.5) / 0.25).reshape(5, 16) / 2 > 0.2
    )
    three = chain(("flat", flat()), ("lif", neuron((48,))), ("fc", dense(48)), shape=(3, 4, 4))
    assert metadata_of(read(three, T=1, dt=DT, mean=(0.5,))).mean == (0.5,) * 3
    assert "--mean has 2 numbers, the input has 3" in refused(three, T=1, dt=DT, mean=(0.5, 0.4))
    assert "--classes has 2 names, the output has 3" in refused(
        small(neuron()), T=1, dt=DT, classes=("a", "b")
    )
    assert "normalisation" not in notes(three, T=1, dt=DT, mean=(0.5,))


def test_a_huge_input_is_refused_before_it_takes_memory() -> None:
    graph = chain(("lif", neuron((1,))), ("fc", dense()), shape=(10**6, 10**6, 10**3))
    assert "put out more than" in refused(graph, T=1, dt=DT)


def test_an_image_shape_for_an_image_is_told_to_go() -> None:
    text = refused(small(neuron()), T=1, dt=DT, image_shape=(1, 2, 8))
    assert "leave --image-shape out" in text


def test_what_is_found_twice_is_said_once(tmp_path: Path) -> None:
    nodes = {
        "input": nir.Input({"input": np.array([16])}),
        "fc": nir.Affine(np.ones((3, 16)), np.zeros(3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    nir.write(tmp_path / "net.nir", nir.NIRGraph(nodes, [("input", "fc"), ("fc", "output")]))
    result = invoke("--json", "check", str(tmp_path / "net.nir"), "--steps", "2")
    messages = [item["message"] for item in json.loads(result.stdout)["findings"]]
    assert sum("no spiking node" in text for text in messages) == 1


def test_options_as_text() -> None:
    reading = parse_reading(4, 1e-3, "raw", "0.5,0.25", "1", "cat, dog", "1,28,28")
    assert reading == Reading(4, 1e-3, "raw", (0.5, 0.25), (1.0,), ("cat", "dog"), (1, 28, 28))
    assert parse_reading(4, 1e-3, "raw", [0.5, 0.25], 1, ["cat", "dog"], (1, 28, 28)) == reading
    assert parse_reading() is None and reading_options(*[None] * 7) == ""
    options = reading_options(4, 1e-3, "raw", "0.5,0.25", "1", "cat, dog", "1,28,28")
    assert shlex.split(options) == [
        "--steps", "4", "--dt", "0.001", "--gain", "raw", "--mean", "0.5,0.25", "--std", "1",
        "--classes", "cat, dog", "--image-shape", "1,28,28",
    ]  # fmt: skip
    # What a shell makes of the text is the reading again.
    for names in (["a, b"], ["it's", "$HOME"], ["[a", "b"], [" a", "b"], ["", ""]):
        given = json.dumps(names)
        option, value = shlex.split(reading_options(*[None] * 5, given, None))
        assert option == "--classes" and parse_reading(classes=value).classes == tuple(names)
    for said, words in [
        ({"dt": -1.0}, "--dt -1.0"), ({"dt": float("nan")}, "--dt nan"),
        ({"gain": "rw"}, "did you mean 'raw'"), ({"mean": "x"}, "--mean 'x'"),
        ({"std": "0"}, "--std 0"), ({"std": "inf"}, "--std 'inf'"),
        ({"std": [1, 0]}, "--std"), ({"image_shape": [28]}, "--image-shape"),
        ({"image_shape": "28,28"}, "--image-shape"), ({"image_shape": "1,0,2"}, "expected C,H,W"),
        ({"classes": "[1]"}, "--classes"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words.replace("[", r"\[")):
            parse_reading(**said)


# ---- structure ---------------------------------------------------------------------------------


def test_one_parameter_for_a_layer_is_broadcast() -> None:
    per_channel = np.array([0.2, 0.4, 0.6]).reshape(3, 1, 1)
    conv = nir.Conv2d(None, np.ones((3, 1, 1, 1)), 1, 0, 1, 1, np.zeros(3))
    for shape in ((), (1,), (1, 1, 1), (3, 1, 1), (1, 3, 4, 4), (3, 4, 4)):
        threshold = 0.4 if np.prod(shape) == 1 else np.broadcast_to(per_channel, (3, 4, 4))
        given = threshold if np.ndim(threshold) == 0 else per_channel
        lif = neuron(shape, v_threshold=given)
        graph = chain(("conv", conv), ("lif", lif), ("flat", flat()), ("fc", dense(48)))
        found = read(graph, T=2, dt=DT)
        np.testing.assert_array_equal(
            found.nodes["lif"].v_threshold, np.broadcast_to(threshold, (3, 4, 4))
        )
        assert ("broadcast" in notes(graph, T=2, dt=DT)) == (shape != (3, 4, 4))
    for shape in ((3,), (4,), (2, 1, 1)):
        graph = chain(("conv", conv), ("lif", neuron(shape)), ("flat", flat()), ("fc", dense(48)))
        text = refused(graph, T=2, dt=DT)
        assert text.startswith("lif: tau has shape") and "(3, 4, 4)" in text


def test_the_batch_axis_of_other_tools() -> None:
    usual = read(small(neuron()), T=3, dt=DT)
    for graph in (
        small(neuron(), shape=(1, 1, 4, 4), out=(1, 3)),
        chain(("flat", flat(1)), ("lif", neuron()), ("fc", dense()), shape=(1, 1, 4, 4)),
    ):
        found = read(graph, T=3, dt=DT)
        np.testing.assert_array_equal(trains(found)["lif"], trains(usual)["lif"])
        assert "batch_axis" in notes(graph, T=3, dt=DT)
    # start_dim 1 is kept where it fits: (3, 4, 4) -> (3, 16).
    conv = nir.Conv2d(None, np.ones((3, 1, 1, 1)), 1, 0, 1, 1, np.zeros(3))
    for shape in ((3, 16), (1,)):
        graph = chain(
            ("conv", conv), ("rows", flat(1)), ("lif", neuron(shape)), ("flat", flat()),
            ("fc", dense(48)),
        )  # fmt: skip
        assert int(read(graph, T=1, dt=DT).nodes["rows"].start_dim) == 1


def test_names_become_names_of_files() -> None:
    graph = chain(
        ("0.flat", flat()), ("block.lif", neuron()), ("block_lif", neuron()), ("fc", dense())
    )
    found = read(graph, T=2, dt=DT)
    assert {"0_flat", "block_lif", "block_lif_2"} <= set(found.nodes)
    assert ("0_flat", "block_lif_2") in found.edges and ("block_lif_2", "block_lif") in found.edges
    assert "was 'block.lif' in the file" in notes(graph, T=2, dt=DT)["renamed"]


def test_subgraphs_are_inlined() -> None:
    plain = chain(("flat", flat()), ("lif", neuron()), ("last", neuron()), ("fc", dense()))
    inner = chain(("flat", flat()), ("lif", neuron()), out=(16,))
    outer = chain(("part", chain(("inner", inner), ("last", neuron()), out=(16,))), ("fc", dense()))
    found = read(outer, T=4, dt=DT)
    assert set(found.nodes) == {
        "input", "part_inner_flat", "part_inner_lif", "part_last", "fc", "output"
    }  # fmt: skip
    one, other = trains(found), trains(read(plain, T=4, dt=DT))
    assert other["lif"].any()
    np.testing.assert_array_equal(one["part_inner_lif"], other["lif"])
    np.testing.assert_array_equal(one["part_last"], other["last"])
    inner.nodes["more"] = nir.Output({"output": np.array([16])})
    assert "inner: subgraph with 2 output nodes" in refused(outer, T=4, dt=DT)


def test_recurrence_in_a_subgraph_names_its_nodes() -> None:
    inner = chain(("lif", neuron()), out=(16,), shape=(16,))
    inner.nodes["w_rec"] = dense(16, 16)
    inner.edges += [("lif", "w_rec"), ("w_rec", "lif")]
    text = refused(chain(("flat", flat()), ("rnn", inner), ("fc", dense())), T=2, dt=DT)
    assert "rnn_lif -> rnn_w_rec" in text or "rnn_w_rec -> rnn_lif" in text
    assert "recurrent graphs are not supported" in text


def test_vectors_and_sequences_are_read_from_images() -> None:
    graph = chain(("lif", neuron()), ("fc", dense()), shape=(16,))
    usual = trains(read(small(neuron()), T=3, dt=DT))["lif"]
    found = read(graph, T=3, dt=DT)
    assert tuple(found.nodes["input"].input_type["input"]) == (1, 1, 16)
    np.testing.assert_array_equal(trains(found, images().reshape(5, 1, 1, 16))["lif"], usual)
    shaped = read(graph, T=3, dt=DT, image_shape=(1, 4, 4))
    np.testing.assert_array_equal(trains(shaped)["lif"], usual)
    assert "product is 16" in refused(graph, T=3, dt=DT, image_shape=(1, 4, 5))
    conv = nir.Conv1d(None, np.ones((2, 1, 3)), 1, 0, 1, 1, np.zeros(2))
    sequence = chain(
        ("conv", conv), ("lif", neuron((2, 14))), ("flat", flat()), ("fc", dense(28)),
        shape=(1, 16),
    )  # fmt: skip
    found = read(sequence, T=1, dt=DT)
    x = images().reshape(5, 1, 1, 16)
    sums = sum(x[:, 0, 0, k : k + 14] / 255 for k in range(3))
    np.testing.assert_array_equal(trains(found, x)["lif"][0, :, 0], sums / 2 > 0.3)
    assert "image_input" in notes(sequence, T=1, dt=DT)


@pytest.mark.parametrize(
    ("last", "states"),
    [
        (("li", neuron((3,), kind=nir.LI)), "li (LI)"),
        (("spiking", neuron((3,))), "spiking (LIF)"),
        (("threshold", nir.Threshold(np.full(1, 0.3))), "threshold (Threshold)"),
        (("scale", nir.Scale(np.full(1, 2.0))), "scale (Scale)"),
    ],
)
def test_read_outs_and_operators_of_other_tools(last: Any, states: str, tmp_path: Path) -> None:
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    graph = chain(("pool", pool), ("flat", flat()), ("lif", neuron((4,))), ("fc", dense(4)), last)
    assert states in notes(graph, T=4, dt=DT)["readout"]
    found = read(graph, T=4, dt=DT)
    ours = FloatEngine(found).run(images())
    assert ours.spikes["lif"].any() and np.ptp(ours.logits) > 0
    if last[0] in ours.spikes:
        np.testing.assert_allclose(ours.logits, ours.spikes[last[0]].mean(axis=0), atol=1e-7)
    write_onnx(found, tmp_path)
    theirs = build_engine("onnx", found, tmp_path).run(images())
    np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-5)


def test_a_missing_bias_and_a_slash_in_a_name_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    graph = small(neuron())
    graph.nodes["fc"] = nir.Affine(graph.nodes["fc"].weight, np.ones(3))
    graph.nodes["flat"].input_type = {"input": np.array((1, 4, 4))}
    nir.write(path, graph)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/fc/bias"]
        file["node/nodes"].move("lif", "block/lif")
        edges = [tuple(name.decode() for name in edge) for edge in file["node/edges"][()]]
        del file["node/edges"]
        file["node/edges"] = [[n.replace("lif", "block/lif") for n in edge] for edge in edges]
    found = read(load_graph(path), T=2, dt=DT)
    np.testing.assert_array_equal(found.nodes["fc"].bias, np.zeros(3))
    assert ("flat", "block_lif") in found.edges


def test_parameters_of_different_shapes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    graph = small(neuron())
    graph.nodes["flat"].input_type = {"input": np.array((1, 4, 4))}
    nir.write(path, graph)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/lif/v_threshold"]
        file["node/nodes/lif/v_threshold"] = 0.25
    found = read(load_graph(path), T=2, dt=DT)
    np.testing.assert_array_equal(found.nodes["lif"].v_threshold, np.full(16, 0.25))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/lif/v_threshold"]
        file["node/nodes/lif/v_threshold"] = np.ones((3, 1))
    with pytest.raises(GraphError, match=r"lif: parameters of different.*v_threshold \(3, 1\)"):
        load_graph(path)


# ---- graphs that cannot be run -----------------------------------------------------------------


def test_problems_of_a_bad_file_come_with_node_and_remedy_and_all_at_once() -> None:
    graph = small(neuron(), shape=(1, 5, 4))
    found = adopt(graph, Reading(dt=DT)).problems
    assert {(p.code, p.node) for p in found} == {("metadata", None), ("shape", "lif")}
    bad = small(neuron())
    bad.edges.append(("fc", "nowhere"))
    bad.nodes["spare"] = neuron()
    bad.nodes["late"] = nir.Delay(np.ones(3))
    found = adopt(bad, Reading(T=1, dt=DT)).problems
    assert {"fc", "spare", "late"} <= {p.node for p in found}
    assert all(p.remedy for p in found)
    add = small(neuron())
    add.edges.append(("lif", "output"))
    text = refused(add, T=1, dt=DT)
    assert "output: adds values of different shapes" in text
    loop = small(neuron())
    loop.edges.append(("fc", "lif"))
    assert "cycle" in refused(loop, T=1, dt=DT)


def test_a_bad_file_is_a_finding_of_check_and_an_error_of_export(tmp_path: Path) -> None:
    path = tmp_path / "bad.nir"
    graph = chain(("flat", flat()), ("lif", cuba(3.0, 3.0)), ("fc", dense()))
    graph.nodes["flat"].input_type = {"input": np.array((1, 4, 4))}
    nir.write(path, graph)
    found = json.loads(invoke("--json", "check", path, "--steps", 2).stdout)
    errors = [(f["node"], f["code"]) for f in found["findings"] if f["severity"] == "error"]
    assert (found["exit_code"], errors) == (2, [("lif", "unsupported")])
    words = ["lif: node type CubaLIF", "tau_syn = dt"]
    fails(2, "export", path, "--steps", 2, "--target", "nir", "--out", tmp_path / "b", says=words)
    assert not (tmp_path / "b").exists()


# ---- golden images -----------------------------------------------------------------------------


def test_golden_images_are_chosen_by_name(tmp_path: Path) -> None:
    graph = read(small(neuron()), T=2, dt=DT)
    assert golden_samples(graph, 3, None).source == "random"
    for choice, words in [
        ("evaluation", "unnamed"), ("synthetic", "only a run"), ("rnd", "no such file"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            golden_samples(graph, 3, None, choice)
    path = tmp_path / "mine.npz"
    np.savez(path, images=images(4))
    chosen = golden_samples(graph, 3, None, str(path))
    assert chosen.source == "file" and chosen.labels.tolist() == [-1] * 3
    np.testing.assert_array_equal(chosen.images, images(4)[:3])
    with pytest.raises(InputError, match="there are 4 file images"):
        golden_samples(graph, 5, None, str(path))
    np.savez(path, images=images(4, (1, 5, 4)))
    with pytest.raises(InputError, match=r"takes uint8 \[N, 1, 4, 4\]"):
        golden_samples(graph, 3, None, str(path))
    np.savez(path, images=images(4), labels=np.array([2, 0, 2, 0]))
    assert golden_samples(graph, 4, None, str(path)).labels.tolist() == [0, 2, 0, 2]


def test_random_images_make_a_population_fire_where_one_of_the_styles_does() -> None:
    hard = read(small(neuron(v_threshold=0.95)), T=4, dt=DT)  # needs pixels near 1: V <= 0.94
    assert not FloatEngine(hard).run(lively_images(hard, 4)).spikes["lif"].any()
    bright = read(small(neuron(v_threshold=0.93)), T=4, dt=DT)  # V = x (1 - 1/16) at T = 4
    chosen = lively_images(bright, 6)
    assert FloatEngine(bright).run(chosen).spikes["lif"].any()
    np.testing.assert_array_equal(chosen[:2], lively_images(bright, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau", np.array(["x"] * 16)),
        ("tau", np.full(16, np.nan)),
        ("tau", np.zeros(16)),
        ("r", np.zeros(16)),
        ("r", np.full(16, -2.0)),
        ("r", np.empty(0)),
        ("v_threshold", np.full((2, 8), 1.0)),
        ("v_threshold", {"a": 1}),
    ],
)
@pytest.mark.parametrize("kind", [nir.LIF, nir.IF])
def test_values_that_are_no_numbers_are_problems_not_crashes(
    kind: Any, field: str, value: Any
) -> None:
    if kind is nir.IF and field == "tau":
        return
    graph = small(neuron(kind=kind))
    setattr(graph.nodes["lif"], field, value)
    for said in ({}, {"dt": DT}, {"dt": DT, "gain": "discrete"}):
        problems = adopt(graph, Reading(T=2, **said)).problems
        negative = field == "r" and np.size(value) == 16  # a gain may be 0 or below
        assert (problems and all(problem.remedy for problem in problems)) or negative


@pytest.mark.parametrize(
    "metadata",
    [{"T": {"a": 1}}, {"T": "x"}, {"dt": -1.0}, {"mean": "x"}, {"std": 0.0}, {"classes": 3}],
)
def test_wrong_metadata_of_another_tool_are_named(metadata: Any) -> None:
    text = refused(small(neuron(r=2.0), metadata={"T": 2, **metadata}))
    assert f"graph metadata {next(iter(metadata))!r}" in text
