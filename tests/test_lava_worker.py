"""Running kit scripts: nothing is left behind, and what went wrong is said."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stars_deploy.errors import BundleError, EngineError
from stars_deploy.simulation import subprocesses
from stars_deploy.simulation.lava import environment as lava_environment
from stars_deploy.simulation.lava.worker import run_kit
from stars_deploy.simulation.subprocesses import TimedOut, run_session

# Starts a child as Lava does, one that ignores SIGTERM, and waits for ever.
HANGING = """
import multiprocessing, os, signal, sys, time
def wait(path, stubborn):
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(path, "w").write(str(os.getpid()))
    time.sleep(1000)
if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    for index in range(2):
        path = f"{sys.argv[1]}/{index}"
        stubborn = index == 1 and sys.argv[2] == "stubborn"
        multiprocessing.Process(target=wait, args=(path, stubborn)).start()
    print("about to hang", file=sys.stderr, flush=True)
    wait(f"{sys.argv[1]}/2", False)
"""
RUN_HANGING = """
import sys
from pathlib import Path
from stars_deploy.simulation.lava.worker import run_kit
run_kit(Path(sys.argv[1]), [sys.argv[2], "mild"])
"""


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A Lava environment that is our own Python: the kits here need nothing else."""
    monkeypatch.setenv("STARS_DEPLOY_CACHE", str(tmp_path / "cache"))
    directory = lava_environment.environment_dir()
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    (directory / "ready.json").write_text('{"lava-nc": "0.10.0"}')
    return directory


def kit(folder, text):
    path = folder / "kit.py"
    path.write_text(text)
    return path


def running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def pids(folder):
    return [int(path.read_text()) for path in sorted(folder.iterdir()) if path.read_text()]


def test_output_and_status(tmp_path):
    script = kit(tmp_path, "import sys; print(sys.argv[1:]); print('seen', file=sys.stderr)")
    done = run_kit(script, ["--a", "b c"])
    assert (done.status, done.stdout, done.stderr) == (0, "['--a', 'b c']\n", "seen\n")


def test_a_hanging_kit_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocesses, "_GRACE_S", 0.5)
    folder = tmp_path / "pids"
    folder.mkdir()
    with pytest.raises(TimedOut, match=r"kit.py: no answer within 6 s") as caught:
        run_kit(kit(tmp_path, HANGING), [str(folder), "stubborn"], timeout=6)
    assert "about to hang" in str(caught.value) and "--timeout" in str(caught.value)
    assert caught.value.exit_code == 5
    assert len(pids(folder)) == 3
    assert not any(running(pid) for pid in pids(folder))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_we_end(tmp_path, how):
    """Ctrl-C lets us clean up; after SIGKILL the kit notices that we are gone."""
    folder = tmp_path / "pids"
    folder.mkdir()
    script = kit(tmp_path, HANGING)
    command = [sys.executable, "-c", RUN_HANGING, str(script), str(folder)]
    ours = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(pids(folder)) == 3)
    assert all(running(pid) for pid in pids(folder))
    ours.send_signal(how)
    assert ours.wait(30) == -how
    wait_until(lambda: not any(running(pid) for pid in pids(folder)))


def test_children_that_outlive_a_finished_kit_are_ended(tmp_path):
    script = kit(
        tmp_path,
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']).pid)",
    )
    assert not running(int(run_kit(script, []).stdout))


def test_a_crash_is_an_engine_error_with_the_end_of_its_stderr(tmp_path):
    script = kit(tmp_path, "print('early\\n' * 50)\nraise RuntimeError('no such core')")
    with pytest.raises(EngineError, match=r"kit.py ended with status 1\n") as caught:
        run_kit(script, [])
    assert str(caught.value).endswith("RuntimeError: no such core")
    assert caught.value.exit_code == 5


def test_a_refused_bundle_is_bad_input(tmp_path):
    script = kit(tmp_path, "import sys; print('run_lava: l1: vth 9', file=sys.stderr); sys.exit(2)")
    with pytest.raises(BundleError, match="run_lava: l1: vth 9"):
        run_kit(script, [])


def test_killed_kit(tmp_path):
    script = kit(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(EngineError, match="status -9"):
        run_kit(script, [])


def test_our_packages_do_not_leak_into_the_kit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    monkeypatch.setenv("STARS_DEPLOY_SEEN", "yes")
    script = kit(
        tmp_path,
        "import os, sys\n"
        "print(*(os.environ.get(k) for k in ('PYTHONPATH', 'VIRTUAL_ENV', 'STARS_DEPLOY_SEEN')))\n"
        "print(sys.flags.isolated)",
    )
    assert run_kit(script, []).stdout == "None None yes\n1\n"


def test_no_environment(tmp_path, environment):
    (environment / "ready.json").unlink()
    with pytest.raises(EngineError, match="doctor --fix"):
        run_kit(kit(tmp_path, ""), [])


def test_a_program_that_is_not_there():
    with pytest.raises(EngineError, match="nowhere/python: cannot be started"):
        run_session(["nowhere/python"])
