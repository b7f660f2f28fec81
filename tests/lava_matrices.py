"""Writes what run_lava.py makes of weights: `lava_matrices.py KIT JOBS.json WEIGHTS.npz OUT.npz`.

JOBS is a list of [connection, source shape_whc, target shape_whc], Python 3.10 with SciPy.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np


def main(kit, jobs, weights, out):
    spec = importlib.util.spec_from_file_location("run_lava", kit)
    run_lava = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_lava)
    with np.load(weights) as arrays:
        found = {
            connection["weight_key"]: run_lava.weight_matrix(
                connection, arrays[connection["weight_key"]], source, target
            ).toarray()
            for connection, source, target in json.loads(Path(jobs).read_text())
        }
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
