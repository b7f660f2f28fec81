"""The engines that can run a bundle, and why one of them cannot."""

from __future__ import annotations

from pathlib import Path

import nir

from stars_deploy.errors import EngineError, InputError, nearest
from stars_deploy.simulation.recording import Engine
from stars_deploy.targets.onnx_options import FILES

#: Engines of this version, in the order of their distance from the graph.
RUNNABLE = ("float", "integer", "onnx", "onnx-int8", "lava")
#: Engines that run elsewhere: a command reaches them, or a trace says what they did.
OUTSIDE = ("hardware", "recorded")
NEEDS = {
    "float": ("graph.nir",),
    "integer": ("loihi/network.json", "loihi/network.npz"),
    "onnx": FILES["float32"],
    "onnx-int8": FILES["int8"],
    "lava": ("loihi/network.json", "loihi/network.npz", "run_lava.py"),
}


NO_NETX = "the bundle has no loihi/network.net: NetX cannot hold this network as it is (see check)"


def check_engine_name(name: str) -> None:
    """Raise InputError for an engine that does not exist."""
    if name not in (*RUNNABLE, *OUTSIDE):
        raise InputError(f"engine {name!r} is unknown{nearest(name, (*RUNNABLE, *OUTSIDE))}")


def require_runnable(name: str) -> None:
    """Raise InputError for an engine that does not exist, EngineError for one not run here."""
    check_engine_name(name)
    if name in OUTSIDE:
        needs = "--command TEMPLATE" if name == "hardware" else "--trace FILE"
        raise EngineError(
            f"engine {name!r} runs elsewhere: judge it with stars-deploy validate BUNDLE --engine "
            f"{name} {needs}; here run one of {', '.join(RUNNABLE)}"
        )


def build_engine(
    name: str, graph: nir.NIRGraph, folder: Path, device: str = "cpu", timeout: float | None = None
) -> Engine:
    """Return the engine `name` for the files of a bundle's folder.

    Besides RUNNABLE there are lava-netx, Lava's NetX, and float-int8, the float engine with the
    weights of the int8 models.

    Raises: BundleError for a missing or malformed file, EngineError if the engine is absent.
    """
    if name == "float":
        from stars_deploy.simulation.reference import FloatEngine

        return FloatEngine(graph)
    if name == "integer":
        from stars_deploy.simulation.integer.engine import open_engine

        return open_engine(folder / "loihi", device)
    if name == "float-int8":
        from stars_deploy.simulation.reference import FloatEngine
        from stars_deploy.targets.onnx_int8 import with_int8_weights

        return FloatEngine(with_int8_weights(graph))
    if name in ("onnx", "onnx-int8"):
        from stars_deploy.simulation.onnx_engine import OnnxEngine

        model, step = NEEDS[name]
        return OnnxEngine(folder / model, folder / step, name=name)
    if name in ("lava", "lava-netx"):
        from stars_deploy.simulation.lava.engine import LavaEngine

        return LavaEngine(folder, "netx" if name == "lava-netx" else "raw", timeout)
    raise InputError(f"engine {name!r} is unknown{nearest(name, RUNNABLE)}")


def not_run(ran: set[str], present: set[str]) -> list[dict[str, str]]:
    """Return every engine that was not run, as {name, reason}; `present` are the bundle's files."""
    missing = [
        {"name": name, "reason": _reason(name, present)}
        for name in (*RUNNABLE, *OUTSIDE)
        if name not in ran
    ]
    if "lava" in ran and "loihi/network.net" not in present:
        missing.append({"name": "lava-netx", "reason": NO_NETX})
    return missing


def _reason(name: str, present: set[str]) -> str:
    if name == "hardware":
        return "no board was asked: --engine hardware needs a --command that reaches one"
    if name == "recorded":
        return "no trace was given: --engine recorded needs --trace"
    missing = [file for file in NEEDS[name] if file not in present]
    if missing:
        return f"the bundle has no {missing[0]}"
    if name == "lava":
        from stars_deploy.simulation.lava.environment import REMEDY, environment_status

        status = environment_status()
        if not status.ready:
            return f"the Lava environment is {status.reason}: {REMEDY}"
    return "not asked for"
