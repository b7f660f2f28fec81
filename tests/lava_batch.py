"""Runs several bundles in one Lava process: `python lava_batch.py KIT JOBS`, Python 3.10.

KIT is run_lava.py; JOBS a JSON list of [bundle, network, trace]. Importing Lava once instead of
once per network is what makes the tests that need it affordable.
"""

import importlib.util
import json
import sys
from pathlib import Path


def main(kit, jobs):
    spec = importlib.util.spec_from_file_location("run_lava", kit)
    run_lava = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_lava)
    for bundle, network, trace in json.loads(Path(jobs).read_text()):
        images = run_lava.load_images(Path(bundle), "golden", None)
        run_lava.write_trace(Path(trace), run_lava.run(Path(bundle), images, network))


if __name__ == "__main__":
    main(*sys.argv[1:])
