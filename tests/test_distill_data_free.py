"""`distill` opens its recipe, the teacher's weights and its own run, and no data set."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from stars_deploy.assets import asset

# Everything that Python opens, renames or lists from the start of the command on is recorded.
WATCHED = """
import json, os, sys
import torch, torch._dynamo, matplotlib.figure, matplotlib.backends.backend_agg
import safetensors.torch
import stars_deploy.data
from stars_deploy.config.recipe import load_recipe
from stars_deploy.workflow.distill import distill

def refuse(*args, **kwargs):
    raise AssertionError("distill asked for a data set")

for name in ("load_data", "_open", "_npz", "_idx_folder", "_read_idx", "_named", "_evaluation"):
    setattr(stars_deploy.data, name, refuse)
seen = []
def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir", "socket.connect", "subprocess.Popen"):
        path = isinstance(args[0], (str, bytes))
        seen.append((event, os.path.abspath(os.fsdecode(args[0])) if path else repr(args[0])))
sys.addaudithook(watch)
recipe = load_recipe(sys.argv[1], sys.argv[3:])
from pathlib import Path
distill(recipe, Path(sys.argv[2]), origin=Path(sys.argv[1]))
print(json.dumps({"seen": seen, "datasets": "torchvision.datasets" in sys.modules}))
"""

SMALL = """
run.epochs=2 run.warmup=1 run.device=cpu run.threads=1 kd.steps=2 kd.batch_size=4
synthesis.batch_size=10
synthesis.nayer.g_steps=2 synthesis.nayer.gwp_loops=1 synthesis.nayer.g_loops=1
synthesis.nayer.harvest_from=0 warm_start.calibration_images=4
"""


def opened(folder, out):
    command = [sys.executable, "-c", WATCHED, str(folder / "recipe.toml"), str(out), *SMALL.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_distill_reads_its_recipe_and_its_teacher_only(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(asset("models", "fashion-mnist"), folder)
    assert (folder / "evaluation.npz").is_file()  # real images lie beside the teacher
    report = opened(folder, out)
    assert (out / "student.safetensors").is_file()
    code = [Path(prefix).resolve() for prefix in {*sys.path, sys.prefix, sys.base_prefix} if prefix]
    system = [Path("/proc"), Path("/dev"), Path("/sys")]
    others, own = set(), set()
    for event, name in report["seen"]:
        path = Path(name)
        if event not in ("open", "os.listdir", "os.scandir"):
            others.add((event, name))
        elif path.is_relative_to(folder):
            own.add(path.name)
        elif not any(path.is_relative_to(place) for place in (out, *code, *system)):
            others.add((event, name))
    assert own <= {"recipe.toml", "teacher.safetensors", "model"}
    assert "recipe.toml" in own  # the hook does see what is opened
    assert others == set()
    assert not report["datasets"]
