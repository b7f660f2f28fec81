"""Three neurons with a known answer: does the Lava environment compute?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stars_deploy import __version__
from stars_deploy.errors import EngineError
from stars_deploy.files import write_json, write_npz
from stars_deploy.simulation.lava.engine import LavaEngine

# One pixel sends q = +50, then -50. Neuron 0 has the weight 3 and neuron 1 the weight -3, so with
# a threshold of 100 exactly one of them fires in each of the T = 2 steps, 150 > 100. The read-out
# weighs them 5 and 7 and divides by 64 T.
_IMAGES = np.array([178, 78], np.uint8).reshape(2, 1, 1, 1)
_SPIKES = np.array([[[1, 0], [0, 1]]] * 2, np.uint8)  # [T, N, 2]
_LOGITS = np.array([[5.0], [7.0]], np.float32)


def probe(timeout: float = 300.0) -> None:
    """Run three neurons in Lava; EngineError when it does not answer what it must."""
    with tempfile.TemporaryDirectory(prefix="stars-deploy.") as folder:
        bundle = Path(folder)
        write_json(bundle / "loihi" / "network.json", _document())
        write_npz(
            bundle / "loihi" / "network.npz",
            {
                "table": np.arange(-128, 128, dtype=np.int32)[None],
                "w.hidden": np.array([[3], [-3]], np.int32),
                "w.out": np.array([[5, 7]], np.int32),
            },
        )
        answer = LavaEngine(bundle, timeout=timeout).run(_IMAGES)
    if not np.array_equal(answer.spikes["hidden"], _SPIKES):
        raise EngineError(f"Lava computed the spikes {answer.spikes['hidden'].tolist()}")
    if not np.array_equal(answer.logits, _LOGITS):
        raise EngineError(f"Lava computed {answer.logits.tolist()}, expected {_LOGITS.tolist()}")


def _document() -> dict[str, Any]:
    return {
        "schema": 1,
        "tool_version": __version__,
        "T": 2,
        "input": {
            "encoding": "signed_q",
            "bits": 8,
            "table_key": "table",
            "shape_whc": [1, 1, 1],
        },
        "populations": [
            _population("hidden", neurons=2, depth=1, vth=100),
            _population("out", neurons=1, depth=2, vth=131071),
        ],
        "connections": [
            _connection("input", "hidden", message_bits=8),
            _connection("hidden", "out", message_bits=0),
        ],
        "readout": {"population": "out", "kind": "potential", "divisor": 128},
    }


def _population(name: str, neurons: int, depth: int, vth: int) -> dict[str, Any]:
    return {
        "name": name,
        "node": name,
        "shape_whc": [neurons],
        "du": 4095,
        "dv": 0,
        "vth": vth,
        "bias_exp": 6,
        "bias_key": None,
        "reset_interval": 2,
        "reset_offset": (1 + depth) % 2,
        "depth": depth,
        "scale": 1.0,
        "spiking": name != "out",
    }


def _connection(source: str, target: str, message_bits: int) -> dict[str, Any]:
    return {
        "name": f"to_{target}",
        "node": target,
        "source": source,
        "target": target,
        "kind": "dense",
        "weight_key": f"w.{target}",
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "delay": 0,
        "message_bits": message_bits,
        "weight_exp": 0,
    }
