"""A command in the place of a board: `python fake_board.py HOW ANSWER TRACE [IMAGES]`.

ANSWER is a trace computed before, or a folder where a hanging command leaves its process ids.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def main(how, answer, trace, images=None):
    if how == "copy":
        shutil.copyfile(answer, trace)
    elif how == "copy-for-images":
        given, expected = (np.load(path)["images"] for path in (images, answer))
        assert given.dtype == np.uint8 and np.array_equal(given, expected)
        shutil.copyfile(answer, trace)
    elif how == "half":
        whole = Path(answer).read_bytes()
        Path(trace).write_bytes(whole[: len(whole) // 2])
    elif how == "garbage":
        Path(trace).write_bytes(b"no trace at all" * 100)
    elif how == "die":
        Path(trace).write_bytes(Path(answer).read_bytes()[:100])
        sys.exit("board 7 does not answer")
    elif how == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(answer, "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    else:
        assert how == "nothing", how


main(*sys.argv[1:])
