"""doctor: a report that can be published, and a repair that is verified."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stars_deploy import __version__
from stars_deploy.cli.app import app
from stars_deploy.errors import EngineError
from stars_deploy.simulation.lava import environment as lava_environment
from stars_deploy.simulation.lava import probe as lava_probe
from stars_deploy.simulation.recording import EngineInfo, Recording
from stars_deploy.workflow import doctor as workflow
from stars_deploy.workflow import private
from stars_deploy.workflow.doctor import doctor

ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STARS_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ready():
    directory = lava_environment.environment_dir()
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").touch()
    (directory / "ready.json").write_text('{"lava-nc": "0.10.0", "lava-dl": "0.6.0"}')


def test_report_without_lava(home):
    report = doctor()
    assert report["lava"]["state"].startswith(
        "not built: build it with `stars-deploy doctor --fix`"
    )
    assert report["packages"]["torch"][0].isdigit()
    assert report["cuda"].startswith(("yes: ", "no"))
    assert {"reference", "loihi1", "loihi2"} <= set(report["profiles"])
    assert "fashion-mnist" in report["models"]
    assert str(home) not in json.dumps(report)
    assert report["lava"]["directory"].startswith("~/.cache/stars-deploy/lava-")


def test_report_with_lava(home):
    ready()
    report = doctor()["lava"]
    assert (report["state"], report["versions"]["lava-dl"]) == ("ready", "0.6.0")
    assert report["verified"].startswith("not tried")


PRIVATE = ("jane", "doe-laptop", "thesis", "/scratch", "/home", "/opt", "/tmp")


def test_nothing_private_is_in_the_report_or_in_what_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("LOGNAME", "jane")
    monkeypatch.setenv("STARS_DEPLOY_CACHE", "/scratch/jane/thesis/cache")
    monkeypatch.setattr(private.socket, "gethostname", lambda: "doe-laptop.example.org")
    monkeypatch.setattr(
        workflow.platform, "platform", lambda: "Linux-6.1-doe-laptop-x86_64-with-glibc2.36"
    )
    problem = (
        "unknown: torch cannot be imported (/opt/jane/lib/libtorch.so: cannot open, "
        f"'{tmp_path}/thesis/x.py' on doe-laptop.example.org, see /home/jane/log and /home/janet/a)"
    )
    monkeypatch.setattr(workflow, "_cuda", lambda: problem)
    report = doctor()
    shown = CliRunner().invoke(app, ["doctor"])
    for text in (json.dumps(report), shown.output):
        assert not [word for word in PRIVATE if word in text], text
    assert report["lava"]["directory"].startswith(".../lava-")
    assert report["system"]["platform"] == "Linux-6.1-HOST-x86_64-with-glibc2.36"
    assert report["cuda"] == (
        "unknown: torch cannot be imported (.../libtorch.so: cannot open, "
        "'.../x.py' on HOST, see ~/log and .../a)"
    )


def test_a_home_at_the_root_leaves_texts_readable(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert private.public("1/2 of /opt/a/b, and/or") == "1/2 of .../b, and/or"


def test_what_is_shown_is_made_to_be_pasted():
    result = CliRunner().invoke(app, ["doctor"])
    before, fence, block = result.stderr.partition("```text\n")
    assert fence and "Copy and paste what follows into an issue" in before
    assert block.endswith("```\n") and block.count("```") == 1
    assert f"stars-deploy: {__version__}\n" in block and "\nlava.state: not built" in block
    assert ESCAPE not in result.stderr


def test_packages_that_are_not_there(monkeypatch):
    monkeypatch.setattr(workflow, "_PACKAGES", ("no-such-package",))
    assert doctor()["packages"] == {"no-such-package": "not installed"}


def test_fix_builds_then_verifies(monkeypatch):
    done = []
    monkeypatch.setattr(workflow, "build_environment", lambda progress: done.append("built"))
    monkeypatch.setattr(workflow, "probe", lambda: done.append("verified"))
    ready()
    assert doctor(fix=True)["lava"]["verified"] == "three neurons computed as by hand"
    assert done == ["built", "verified"]


@pytest.mark.parametrize(
    ("spikes", "logits", "said"),
    [
        (lava_probe._SPIKES[:, ::-1], lava_probe._LOGITS, "computed the spikes"),
        (lava_probe._SPIKES, lava_probe._LOGITS + 1, "computed \\[\\[6"),
    ],
)
def test_a_lava_that_computes_something_else_is_not_verified(monkeypatch, spikes, logits, said):
    class Wrong:
        def __init__(self, bundle, timeout):
            assert (bundle / "loihi" / "network.json").is_file()

        def run(self, images):
            info = EngineInfo("lava-fixed_pt", "0.10.0", "simulated")
            return Recording(info, logits, {"hidden": spikes})

    monkeypatch.setattr(lava_probe, "LavaEngine", Wrong)
    with pytest.raises(EngineError, match=said):
        lava_probe.probe()


@pytest.mark.lava
def test_the_real_environment_is_verified(monkeypatch):
    monkeypatch.undo()
    status = lava_environment.environment_status()
    if not status.ready:
        pytest.fail(f"the Lava environment is {status.reason}: {lava_environment.REMEDY}")
    report = doctor(fix=True)
    assert report["lava"]["verified"] == "three neurons computed as by hand"
    assert str(Path.home()) not in json.dumps(report)
