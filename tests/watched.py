"""What a piece of our code opens: run in a process of its own, every file and connection noted."""

import json
import subprocess
import sys
from pathlib import Path

# Everything that Python opens, renames or lists while `work` runs is recorded.
_SCRIPT = """
import json, os, sys
import torch, torch._dynamo, matplotlib.figure, matplotlib.backends.backend_agg
import safetensors.torch
import stars_deploy.data
from pathlib import Path
{imports}

def refuse(*args, **kwargs):
    raise AssertionError("a data set was asked for")

for name in ("load_data", "_open", "_npz", "_idx_folder", "_read_idx", "_named", "_evaluation"):
    setattr(stars_deploy.data, name, refuse)
seen = []
def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir", "socket.connect", "subprocess.Popen"):
        path = isinstance(args[0], (str, bytes))
        seen.append((event, os.path.abspath(os.fsdecode(args[0])) if path else repr(args[0])))
sys.addaudithook(watch)
{work}
print(json.dumps({{"seen": seen, "datasets": "torchvision.datasets" in sys.modules}}))
"""


def opened(imports, work, words, folder, given):
    """Run `work` in `folder` with `words` as sys.argv[1:].

    Returns the names of what it opened at or below the paths `given`, and all else that it opened
    or reached beyond Python's own places and `folder`. It may ask for no data set.
    """
    script = _SCRIPT.format(imports=imports, work=work)
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["datasets"]
    code = [Path(prefix).resolve() for prefix in {*sys.path, sys.prefix, sys.base_prefix} if prefix]
    known = (folder, *code, Path("/proc"), Path("/dev"), Path("/sys"))
    own, others = set(), set()
    for event, name in report["seen"]:
        path = Path(name)
        if event not in ("open", "os.listdir", "os.scandir"):
            others.add((event, name))
        elif any(path.is_relative_to(place) for place in given):
            own.add(path.name)
        elif not any(path.is_relative_to(place) for place in known):
            others.add((event, name))
    return own, others
