"""validate --engine hardware and recorded, through the command line, with commands of all sorts."""

import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import bundles
import numpy as np
import pytest
import traces
from typer.testing import CliRunner

from stars_deploy.assets import asset
from stars_deploy.cli import _global_options_first
from stars_deploy.cli.app import app
from stars_deploy.errors import DataError
from stars_deploy.files import sha256
from stars_deploy.simulation.board_command import parse_command
from stars_deploy.simulation.subprocesses import run_session
from stars_deploy.simulation.trace import read_trace, seal_of
from stars_deploy.targets.bundle import open_bundle, read_golden, seal

HERE = Path(__file__).parent
NODES = ["lif1", "lif2", "lif3"]


def invoke(*words):
    return CliRunner().invoke(app, _global_options_first([str(word) for word in words]))


def fails(code, *words, says=()):
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for part in says:
        assert part in result.stderr, result.stderr
    return result


def running(pid):
    """Whether a process exists and has not ended (nobody may collect an orphan)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def ended(pids, seconds=10.0):
    limit = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(map(running, pids))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return bundles.write_bundle(tmp_path_factory.mktemp("hardware"))


@pytest.fixture
def bundle(exported, tmp_path):
    """In a folder whose name no shell would leave in one piece."""
    return shutil.copytree(exported, tmp_path / "my lab's" / "the bundle")


@pytest.fixture
def golden(bundle):
    return read_golden(bundle / "golden.npz")


def board(how, answer, *more):
    """A command that runs fake_board.py."""
    words = [sys.executable, str(HERE / "fake_board.py"), how, str(answer)]
    return " ".join([shlex.join(words), "{trace}", *more])


def hardware(bundle, template, *options):
    return ["validate", bundle, "--engine", "hardware", "--command", template, *options]


def recorded(bundle, trace, *options):
    return ["validate", bundle, "--engine", "recorded", "--trace", trace, *options]


def verdict(bundle):
    return json.loads((bundle / "validation.json").read_text())


# ---- a run, kept and replayed ------------------------------------------------------------------


def test_a_run_passes_is_kept_and_replayed(bundle, golden, tmp_path):
    answer = traces.write(tmp_path / "answer.npz", traces.arrays_of(bundle, golden.images))
    result = invoke(*hardware(bundle, board("copy", answer)))
    assert result.exit_code == 0, result.output
    kept = bundle.parent / "the bundle.trace.npz"
    assert kept.read_bytes() == answer.read_bytes()
    assert sorted(bundle.parent.iterdir()) == [bundle, kept]
    replay = result.stderr.split("without the board: ")[1].splitlines()[0]
    first = verdict(bundle)
    assert first["verdict"] == "pass" and first["reference"]["engine"] == "integer"
    assert [layer["mismatches"] for layer in first["layers"]] == [0, 0, 0]
    assert first["readout"]["max_abs_difference"] == 0 and first["n"] == 16
    assert first["engine"] == {
        "name": "lava-fixed_pt", "version": "0.10.0", "kind": "simulated", "run_config": "sim",
        "network": "raw", "timings": {"startup_s": 1.5, "run_s": 2.5},
        "versions": {"python": "3.10.14", "lava-nc": "0.10.0"}, "trace_sha256": sha256(kept),
    }  # fmt: skip
    assert "hardware" not in {item["name"] for item in first["engines_not_run"]}
    assert first["command"].endswith(shlex.join(["--command", board("copy", answer)]))
    result = invoke(*shlex.split(replay)[1:])
    assert result.exit_code == 0, result.output
    again = verdict(bundle)
    for key in ("verdict", "layers", "readout", "engine", "energy", "n", "agreement"):
        assert again[key] == first[key], key
    assert "hardware" in {item["name"] for item in again["engines_not_run"]}
    open_bundle(bundle)


def test_a_run_on_a_board_is_measured_and_nothing_else_is(bundle, golden, tmp_path):
    measured = {"engine": "loihi2", "kind": "measured", "run_config": "hardware"}
    arrays = traces.arrays_of(bundle, golden.images, **measured)
    trace = traces.write(tmp_path / "trace.npz", arrays)
    assert invoke(*recorded(bundle, trace)).exit_code == 0
    engine = verdict(bundle)["engine"]
    assert (engine["name"], engine["kind"], engine["run_config"]) == (
        "loihi2", "measured", "hardware",
    )  # fmt: skip
    arrays = traces.arrays_of(bundle, golden.images, kind="measured")
    traces.write(trace, arrays)
    fails(2, *recorded(bundle, trace), says=["'measured'", "expected simulated"])


def test_an_earlier_verdict_is_listed_beside_the_board_s(bundle, golden, tmp_path):
    assert invoke("validate", bundle).exit_code == 0
    trace = traces.write(tmp_path / "trace.npz", traces.arrays_of(bundle, golden.images))
    assert invoke(*recorded(bundle, trace)).exit_code == 0
    assert [item["engine"]["name"] for item in verdict(bundle)["earlier"]] == ["integer"]


def test_a_trace_of_the_first_images_stands_for_those(bundle, golden, tmp_path):
    trace = traces.write(tmp_path / "trace.npz", traces.arrays_of(bundle, golden.images[:5]))
    assert invoke(*recorded(bundle, trace)).exit_code == 0
    assert verdict(bundle)["n"] == 5 and "--limit 5" in verdict(bundle)["command"]
    assert invoke(*recorded(bundle, trace, "--limit", 3)).exit_code == 0
    assert verdict(bundle)["n"] == 3
    fails(2, *recorded(bundle, trace, "--limit", 6), says=["other images than the 6 given"])


def test_other_images_are_sent_and_replayed_with_their_labels(bundle, golden, tmp_path):
    images = 255 - golden.images[:6]
    data = tmp_path / "data.npz"
    arrays = traces.arrays_of(bundle, images)
    np.savez(data, images=images, labels=arrays["logits"].argmax(axis=1))
    answer = traces.write(tmp_path / "answer.npz", arrays)
    command = board("copy-for-images", answer, "{images}")
    kept = tmp_path / "kept" / "board.npz"
    result = invoke(*hardware(bundle, command, "--data", data, "--trace", kept))
    assert result.exit_code == 0, result.output
    assert verdict(bundle)["accuracy"] == {"reference": 1.0, "target": 1.0, "delta": 0.0}
    assert invoke(*recorded(bundle, kept, "--data", data)).exit_code == 0
    fails(2, *recorded(bundle, kept), says=["other images"])
    fails(2, *hardware(bundle, board("copy", answer), "--data", data), says=["{images}"])
    fails(2, *hardware(bundle, board("copy", answer), "--limit", 4), says=["{images}"])


def test_images_in_batches_are_played_in_order(bundle, golden, tmp_path, monkeypatch):
    """Equal images, answered differently: a state that was carried over must show."""
    from stars_deploy.workflow import setting

    monkeypatch.setattr(setting, "BATCH_VALUES", 1)  # one image at a time
    data = tmp_path / "data.npz"
    images = np.repeat(golden.images[:1], 4, axis=0)
    np.savez(data, images=images, labels=np.zeros(4, np.int64))
    arrays = traces.arrays_of(bundle, images)
    trace = traces.write(tmp_path / "trace.npz", arrays)
    assert invoke(*recorded(bundle, trace, "--data", data)).exit_code == 0
    arrays["spikes.lif1"][0, 3].flat[0] ^= 1
    traces.write(trace, arrays)
    fails(3, *recorded(bundle, trace, "--data", data), says=["lif1: 1 of "])


# ---- what is wrong with a trace ------------------------------------------------------------------


def test_a_wrong_spike_fails_and_names_the_first_layer(bundle, golden, tmp_path):
    arrays = traces.flip(traces.arrays_of(bundle, golden.images))
    answer = traces.write(tmp_path / "answer.npz", arrays)
    result = fails(3, *hardware(bundle, board("copy", answer)), says=["lif2: 1 of "])
    assert "--engine recorded" in result.stderr  # the trace is the evidence
    rows = {layer["name"]: layer for layer in verdict(bundle)["layers"]}
    assert rows["lif1"]["mismatches"] == 0 and rows["lif2"]["mismatches"] == 1
    assert verdict(bundle)["verdict"] == "fail"


def test_a_wrong_readout_on_equal_spikes_fails(bundle, golden, tmp_path):
    arrays = traces.arrays_of(bundle, golden.images)
    arrays["logits"] = arrays["logits"] + np.float32(2.0**-10)
    trace = traces.write(tmp_path / "trace.npz", arrays)
    fails(3, *recorded(bundle, trace), says=["readout: logits"])


def without_a_new_seal(change):
    """Change an array and keep the old seal."""

    def damage(path, arrays, bundle):
        sealed = traces.kit().seal_of(arrays)
        np.savez_compressed(path, **change(arrays), seal=np.array(sealed))

    return damage


def with_a_new_seal(change):
    return lambda path, arrays, bundle: traces.write(path, change(arrays))


def cut(path, arrays, bundle):
    traces.write(path, arrays)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bit(path, arrays, bundle):
    traces.write(path, arrays)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 16
    path.write_bytes(whole)


def of_another_bundle(path, arrays, bundle):
    traces.write(path, arrays)
    (bundle / "run_onnx.py").write_text("# another\n")
    seal(bundle)


def put(name, value):
    return lambda arrays: {**arrays, name: value(arrays)}


def drop(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def edited_info(**changes):
    return put("info", lambda a: np.array(json.dumps(json.loads(str(a["info"])) | changes)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_a_new_seal(traces.flip), "changed after the run"),
        (without_a_new_seal(edited_info(version="9")), "changed after the run"),
        (without_a_new_seal(drop("readout.v")), "changed after the run"),
        (without_a_new_seal(put("note", lambda a: np.array(1))), "changed after the run"),
        (without_a_new_seal(put("logits", lambda a: a["logits"].T)), "changed after the run"),
        (with_a_new_seal(put("images", lambda a: a["images"][::-1].copy())), "other images"),
        (with_a_new_seal(drop("spikes.lif2")), "no recording of lif2"),
        (with_a_new_seal(drop("logits")), "no recording of the read-out"),
        (with_a_new_seal(put("spikes.lif1", lambda a: a["spikes.lif1"][1:])), "T = 4 steps"),
        (with_a_new_seal(put("spikes.lif1", lambda a: 2 * a["spikes.lif1"])), "spikes.lif1"),
        (with_a_new_seal(put("spikes.lif1", lambda a: a["spikes.lif1"][..., :-1])), "neurons"),
        (with_a_new_seal(put("logits", lambda a: a["logits"] * np.nan)), "logits is float32"),
        (with_a_new_seal(put("spikes.lif1", lambda a: np.array(["x"]))), "trace"),
        (with_a_new_seal(put("images", lambda a: np.array(3))), "images is int64"),
        (with_a_new_seal(edited_info(schema=1)), "trace schema 1, expected 2"),
        (with_a_new_seal(edited_info(run_config="fast")), "expected one of sim, hardware"),
        (with_a_new_seal(edited_info(timings=3)), "info.timings is 3, expected dict"),
        (with_a_new_seal(put("info", lambda a: np.array("[1]"))), "not a trace"),
        (with_a_new_seal(put("info", lambda a: np.array("[" * 100_000))), "not a trace"),
        (with_a_new_seal(edited_info(timings={"run_s": float("nan")})), "not JSON compliant"),
        (with_a_new_seal(edited_info(version="\ud800")), "surrogates"),
        (with_a_new_seal(put("readout.v", lambda a: np.array(["x"] * 16))), "readout.v is <U1"),
        (with_a_new_seal(drop("manifest_sha256")), "not a trace"),
        (lambda path, arrays, bundle: np.savez(path, **arrays), "not a trace"),  # no seal
        (lambda path, arrays, bundle: None, "no such file"),
        (cut, "not a readable npz"),
        (bit, "trace.npz"),
        (of_another_bundle, "recorded from another bundle"),
    ],
)
def test_a_trace_that_is_not_the_run_s_is_refused(bundle, golden, tmp_path, damage, said):
    trace = tmp_path / "trace.npz"
    damage(trace, traces.arrays_of(bundle, golden.images), bundle)
    fails(2, *recorded(bundle, trace), says=[said])
    assert not (bundle / "validation.json").exists()


def test_every_bit_of_a_trace_is_under_the_seal(bundle, golden, tmp_path):
    path = traces.write(tmp_path / "trace.npz", traces.arrays_of(bundle, golden.images[:2]))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    with np.load(path) as archive:
        honest = {key: archive[key].tobytes() for key in archive.files}
    for place in rng.integers(0, len(whole), 200):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            trace = read_trace(path)
        except DataError:
            continue
        # Dates and attributes of the zip are no part of the run.
        assert all(honest[f"spikes.{n}"] == v.tobytes() for n, v in trace.spikes.items())
        assert honest["images"] == trace.images.tobytes()


def test_the_kit_and_the_reader_seal_alike():
    arrays = {
        "b": np.arange(6, dtype=np.int32).reshape(2, 3).T, "a": np.array("text"),
        "c": np.zeros((0, 2), bool), "seal": np.array("old"),
    }  # fmt: skip
    sealed = traces.kit().seal_of(arrays)
    assert seal_of(arrays) == sealed
    others = (
        {"b": arrays["b"].copy().reshape(2, 3)}, {"b": arrays["b"].astype(np.int64)},
        {"a": np.array("texT")}, {"c": np.zeros((2, 0), bool)}, {"d": np.array(1)},
    )  # fmt: skip
    for other in others:
        assert seal_of({**arrays, **other}) != sealed
    assert seal_of({**arrays, "seal": np.array("new")}) == sealed


# ---- what is wrong with a command ----------------------------------------------------------------


@pytest.fixture
def validated(bundle, golden, tmp_path):
    """A bundle with a verdict and a trace, and what its files hold: no failure may touch them."""
    answer = traces.write(tmp_path / "answer.npz", traces.arrays_of(bundle, golden.images))
    assert invoke(*hardware(bundle, board("copy", answer))).exit_code == 0

    def files():
        return {path: path.read_bytes() for path in bundle.parent.rglob("*") if path.is_file()}

    before = files()
    yield bundle, answer
    assert files() == before


def test_a_hanging_command_is_ended_with_its_children(validated, tmp_path):
    bundle, _ = validated
    command = board("hang", tmp_path)
    fails(5, *hardware(bundle, command, "--timeout", 4), says=["fake_board.py hang", "within 4 s"])
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and ended(pids)


def test_a_command_that_dies_is_heard(validated):
    bundle, answer = validated
    said = ["ended with status 1", "board 7 does not answer"]
    fails(5, *hardware(bundle, board("die", answer)), says=said)
    fails(5, *hardware(bundle, "no-such-program {trace}"), says=["no-such-program", "started"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nothing", "ended well but wrote no trace"),
        ("half", "--command wrote a trace that is not usable"),
        ("garbage", "--command wrote a trace that is not usable"),
    ],
)
def test_a_command_without_a_usable_trace(validated, how, said):
    bundle, answer = validated
    fails(2, *hardware(bundle, board(how, answer)), says=[said])


def test_a_command_that_answers_with_another_run(validated, golden, tmp_path):
    bundle, answer = validated
    arrays = dict(np.load(answer))
    arrays["manifest_sha256"] = np.array("0" * 64)
    other = traces.write(tmp_path / "other.npz", arrays)
    fails(2, *hardware(bundle, board("copy", other)), says=["another bundle"])
    np.savez(tmp_path / "tampered.npz", **traces.flip(dict(np.load(answer))))
    tampered = board("copy", tmp_path / "tampered.npz")
    fails(2, *hardware(bundle, tampered), says=["changed after the run"])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("run {bundle}", "no {trace}"),
        ("", "no {trace}"),
        ("run {bundel} {trace}", "{bundel} is unknown, there are {bundle}, {trace}, {images}"),
        ("run {trace!r} {trace}", "{trace!r} is unknown"),
        ("run {trace:>9}", "{trace:>9} is unknown"),
        ("run {0} {} {trace}", "{}, {0} is unknown"),
        ("run {bundle.parent} {trace}", "{bundle.parent} is unknown"),
        ("run '{trace}", "No closing quotation"),
        ("run {trace", "expected '}'"),
    ],
)
def test_bad_templates_are_shown(bundle, template, said):
    says = [repr(template), said, "expected words as in", "{bundle} {trace} --images {images}"]
    fails(2, *hardware(bundle, template), says=says)
    assert sorted(bundle.parent.iterdir()) == [bundle]


def test_placeholders_are_filled_within_words_without_a_shell(tmp_path):
    script = tmp_path / "say.py"
    script.write_text("import sys, json; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))")
    words = "{trace} --at={bundle}:x '{{a}} $HOME *' \"; echo;\" ~"
    command = parse_command(f"{shlex.join([sys.executable, str(script)])} {words}")
    trace, folder = tmp_path / "a trace", tmp_path / "it's {here}"
    command.run(folder, trace, tmp_path / "images", 60)
    expected = [f"--at={folder}:x", "{a} $HOME *", "; echo;", "~"]
    assert json.loads(trace.read_text()) == expected


def test_options_without_use_are_refused(bundle, golden, tmp_path):
    trace = traces.write(tmp_path / "trace.npz", traces.arrays_of(bundle, golden.images))
    command = board("copy", trace)
    fails(2, "validate", bundle, "--command", command, says=["--engine hardware", "integer"])
    fails(2, "validate", bundle, "--engine", "lava", "--trace", trace, says=["engine lava"])
    fails(2, *recorded(bundle, trace, "--command", command), says=["--command is for"])
    fails(2, "validate", bundle, "--engine", "hardware", says=["needs --command TEMPLATE"])
    fails(2, "validate", bundle, "--engine", "recorded", says=["needs --trace FILE"])
    fails(2, *recorded(bundle, trace, "--profile", "loihi1"), says=["are for profile loihi2"])
    for name in ("hardware", "recorded"):
        says = [f"validate BUNDLE --engine {name}", "runs elsewhere"]
        fails(5, "simulate", bundle, "--engine", name, says=says)


def test_a_trace_is_kept_only_where_it_does_no_harm(bundle, golden, tmp_path):
    answer = traces.write(tmp_path / "answer.npz", traces.arrays_of(bundle, golden.images))
    command = board("copy", answer)
    inside = bundle / "loihi" / "trace.npz"
    fails(2, *hardware(bundle, command, "--trace", inside), says=["lies in the bundle"])
    mine = tmp_path / "mine.npz"
    np.savez(mine, thesis=np.arange(9))
    fails(2, *hardware(bundle, command, "--trace", mine), says=["mine.npz", "not replaced"])
    assert list(np.load(mine)) == ["thesis"] and not (bundle / "validation.json").exists()


# ---- hil_run.py over something like ssh ----------------------------------------------------------

FAKE_KIT = """
import os, shutil, subprocess, sys, time
bundle, trace = sys.argv[1:3]
if {hang!r}:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({hang!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)
if "--images" not in sys.argv:
    sys.exit("run_lava: it takes images")
assert os.path.isfile(os.path.join(bundle, "loihi", "network.npz"))
assert not os.path.exists(os.path.join(bundle, "model.onnx"))  # only what is needed travels
shutil.copyfile({answer!r}, trace)
"""


@pytest.fixture
def lab(bundle, tmp_path):
    """A bundle whose run_lava.py copies an answer, and a host whose home has a trying name."""
    home = tmp_path / "home of $USER"
    home.mkdir()

    def prepare(hang=""):
        answer = tmp_path / "answer.npz"
        (bundle / "run_lava.py").write_text(FAKE_KIT.format(answer=str(answer), hang=str(hang)))
        seal(bundle)
        traces.write(answer, traces.arrays_of(bundle, read_golden(bundle / "golden.npz").images))
        return bundle, home

    return prepare


def over_ssh(home, *options, host="lab", images="--images {images}"):
    ssh = shlex.join([sys.executable, str(HERE / "fake_ssh.py"), str(home)])
    script = asset("export", "hil", "hil_run.py")
    words = [sys.executable, str(script), "--host", host, "--ssh", ssh, "--python", sys.executable]
    return f"{shlex.join([*words, *options])} {{bundle}} {{trace}} {images}"


def test_a_run_over_ssh_brings_the_trace_back(lab):
    bundle, home = lab()
    for _ in range(2):
        folder = ("--folder", "my runs;1")
        result = invoke(*hardware(bundle, over_ssh(home, *folder)))
        assert result.exit_code == 0, result.output
    (copied,) = (home / "my runs;1").iterdir()  # what a run needed is gone again
    names = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    loihi = {f"loihi/network.{kind}" for kind in ("json", "npz", "net")}
    assert names == {"manifest.json", "golden.npz", "run_lava.py", *loihi}
    log = (home / "log").read_text()
    assert log.count("tar -xf") == 1 and log.count("--run-config hardware") == 2


def test_what_goes_wrong_on_the_host_is_passed_on(lab):
    bundle, home = lab()
    says = ["status 1", "run_lava: it takes images", "lab: run_lava.py failed"]
    fails(5, *hardware(bundle, over_ssh(home, images="")), says=says)
    says = ["Could not resolve hostname", "status 5"]
    fails(5, *hardware(bundle, over_ssh(home, host="nowhere")), says=says)
    says = ["--host '-oProxyCommand=x'", "status 2"]
    fails(5, *hardware(bundle, over_ssh(home, "--host=-oProxyCommand=x")), says=says)
    full = home / "full"
    full.touch()  # a file where a folder is needed
    says = ["lab: making a folder failed", "status 5"]
    fails(5, *hardware(bundle, over_ssh(home, "--folder", "full")), says=says)
    (left,) = (home / "stars-deploy-hil").iterdir()
    assert not left.name.startswith("run-")


def test_the_run_on_the_host_ends_when_we_give_up(lab, tmp_path):
    bundle, home = lab(hang=tmp_path / "pids")
    fails(5, *hardware(bundle, over_ssh(home), "--timeout", 10), says=["within 10 s"])
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and ended(pids)
    own = over_ssh(home, "--timeout", "8")
    (tmp_path / "pids").unlink()
    fails(5, *hardware(bundle, own), says=["status 5", "run_lava.py: out of time"])
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert ended(pids)


def test_the_host_script_needs_only_the_standard_library():
    import ast

    text = asset("export", "hil", "hil_run.py").read_text()
    for node in ast.walk(ast.parse(text, feature_version=(3, 10))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


# ---- the guides' commands ------------------------------------------------------------------------

ROOT = HERE.parent
GUIDES = (ROOT / "docs" / "hardware-in-the-loop.md", asset("export", "hil", "README.md"))


def guide(path, **words):
    """The validate commands of a guide as lists of words, with capital names replaced."""
    text = path.read_text().replace("\\\n", " ").replace("BUNDLE", "demo/bundle")
    lines = [line.strip() for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("stars-deploy validate")]
    for name, value in words.items():
        commands = [line.replace(name, value) for line in commands]
    return [shlex.split(line)[1:] for line in commands]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_guides_commands_over_ssh(lab, tmp_path, monkeypatch, path):
    bundle, home = lab()
    shutil.copytree(bundle, tmp_path / "demo" / "bundle")
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    words = shlex.join([sys.executable, str(HERE / "fake_ssh.py"), str(home)])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    commands = guide(path, HOST="lab", PYTHON=sys.executable)
    first, last = commands[0], commands[-1]
    result = invoke(*first)
    assert result.exit_code == 0, result.output
    if path.stem == "README":  # there the trace came back by hand
        shutil.copyfile("demo/bundle.trace.npz", "trace.npz")
    assert "recorded" in last and invoke(*last).exit_code == 0
    assert verdict(tmp_path / "demo" / "bundle")["verdict"] == "pass"


# ---- run_lava.py itself --------------------------------------------------------------------------


def test_the_kit_refuses_integers_that_the_manifest_does_not_list(bundle):
    kit = traces.kit()
    assert kit.manifest_sha256(bundle) == sha256(bundle / "manifest.json")
    bundles.change_arrays(bundle / "loihi" / "network.npz", lambda arrays: arrays.update(x=1))
    with pytest.raises(kit.KitError, match=r"network\.npz: sha256 is .*the manifest lists"):
        kit.manifest_sha256(bundle)
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(kit.KitError, match="not readable"):
        kit.manifest_sha256(bundle)
    (bundle / "manifest.json").unlink()
    assert kit.manifest_sha256(bundle) == ""


def test_only_a_board_s_run_describes_itself_as_measured():
    images = np.zeros((2, 1, 3, 3), np.uint8)
    document = {"T": 4, "populations": []}
    for network, hardware_, expected in (
        ("raw", False, ("lava-fixed_pt", "simulated", "sim")),
        ("netx", False, ("lava-netx", "simulated", "sim")),
        ("raw", True, ("loihi2", "measured", "hardware")),
    ):
        info = traces.kit().describe(document, images, network, hardware_, {"run_s": 1.0})
        assert (info["engine"], info["kind"], info["run_config"]) == expected
        assert info["timings"] == {"run_s": 1.0} and info["network"] == network


@pytest.mark.lava
def test_lava_through_the_guide_s_command_and_its_replay(bundle, tmp_path, monkeypatch):
    from stars_deploy.simulation.lava.environment import require_environment

    here = shutil.copytree(bundle, tmp_path / "demo" / "bundle")
    monkeypatch.chdir(tmp_path)
    _, run, replay = guide(GUIDES[0], PYTHON=str(require_environment().python))
    result = invoke(*run, "--timeout", 300)
    assert result.exit_code == 0, result.output
    first = verdict(here)
    assert (first["engine"]["name"], first["engine"]["kind"]) == ("lava-fixed_pt", "simulated")
    assert [layer["mismatches"] for layer in first["layers"]] == [0, 0, 0] and first["n"] == 4
    assert {layer["state"] for layer in first["layers"]} == {"active"}
    assert first["engine"]["versions"]["lava-nc"] == first["engine"]["version"] == "0.10.0"
    assert first["engine"]["timings"]["run_s"] > 0
    assert invoke(*replay).exit_code == 0
    assert verdict(here)["layers"] == first["layers"] and verdict(here)["n"] == 4
    kept = tmp_path / "demo" / "bundle.trace.npz"
    traces.write(kept, traces.flip(dict(np.load(kept))))
    fails(3, *replay, says=["lif2: 1 of "])


def test_only_the_end_of_endless_output_is_kept():
    command = [sys.executable, "-c", "print('x' * 5_000_000); print('the end')"]
    answer = run_session(command)
    assert len(answer.stdout) <= 1 << 20 and answer.stdout.endswith("x\nthe end\n")
