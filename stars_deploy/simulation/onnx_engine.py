"""The written ONNX models as an engine: onnxruntime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stars_deploy.errors import BundleError, DataError, EngineError
from stars_deploy.graph.metadata import MAX_STEPS
from stars_deploy.simulation.recording import EngineInfo, Recording, Spikes

_BATCH = 64


@dataclass(frozen=True)
class Counts:
    """Answer of the unrolled model: logits float32 [N, K], spikes int32 [N, ...] over T."""

    logits: NDArray[np.float32]
    spikes: dict[str, NDArray[np.int32]]


class OnnxEngine:
    """Runs model_step.onnx T times for per-step spikes, and model.onnx for their sums.

    Only the files are read: nodes, T and the initial state stand in the models themselves.
    """

    def __init__(self, model: Path, step: Path, threads: int = 0, name: str = "onnx") -> None:
        """Load both models; `threads` 0 lets onnxruntime choose.

        Raises: BundleError for a file that is missing, damaged or not written by this tool.
        """
        self._unrolled = _session(model, threads)
        self._step = _session(step, threads)
        self.info = EngineInfo(name, f"onnxruntime {onnxruntime.__version__} CPU", "simulated")
        self.nodes: list[str] = _property(step, self._step, "nodes")
        self._T: int = _property(step, self._step, "T")
        self._initial: dict[str, Any] = _property(step, self._step, "initial_state")
        self._check_properties(step)
        for key in ("nodes", "T"):
            if _property(model, self._unrolled, key) != _property(step, self._step, key):
                raise BundleError(
                    f"{model.name} and {step.name} disagree on {key}; export the bundle again"
                )

    def _check_properties(self, step: Path) -> None:
        """Refuse metadata of other kinds, and a T that would run for ever."""
        names = isinstance(self.nodes, list) and all(isinstance(x, str) for x in self.nodes)
        inputs = {entry.name for entry in self._step.get_inputs()}
        initial = isinstance(self._initial, dict) and all(f"v.{x}" in inputs for x in self._initial)
        steps = type(self._T) is int and 1 <= self._T <= MAX_STEPS
        if not (names and initial and steps):
            raise BundleError(
                f"{step}: nodes, T or initial_state in the model's metadata is not what "
                "stars-deploy writes; export the bundle again"
            )

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run the step model T times on uint8 images [N, C, H, W].

        Raises: EngineError for `feed` or `margins`, which the model does not take or put out;
        DataError for images of another shape; EngineError when onnxruntime fails.
        """
        if feed is not None or margins:
            what = "take spikes from outside" if feed is not None else "put out margins"
            raise EngineError(
                f"onnx: the models do not {what}; feed these spikes to the reference engine "
                "instead and compare there"
            )
        parts = [self._run_steps(batch) for batch in self._batches(images)]
        logits = np.concatenate([part[0] for part in parts])
        spikes = {n: np.concatenate([part[1][n] for part in parts], axis=1) for n in self.nodes}
        return Recording(self.info, logits, spikes)

    def counts(self, images: NDArray[np.uint8]) -> Counts:
        """Run the unrolled model on uint8 images [N, C, H, W]; errors as in run."""
        names = ["logits", *(f"spikes.{node}" for node in self.nodes)]
        parts = [_call(self._unrolled, names, {"image": x}) for x in self._batches(images)]
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        return Counts(joined[0], dict(zip(self.nodes, joined[1:], strict=True)))

    def _run_steps(
        self, image: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.uint8]]]:
        state = self._start(len(image))
        spiking = [f"spikes.{node}" for node in self.nodes]
        names = ["logits", *spiking, *(f"v_next.{node}" for node in state)]
        logits, steps = [], []
        for _ in range(self._T):
            feeds = {"image": image, **{f"v.{node}": v for node, v in state.items()}}
            answer = _call(self._step, names, feeds)
            logits.append(answer[0])
            steps.append(answer[1 : 1 + len(spiking)])
            state = dict(zip(state, answer[1 + len(spiking) :], strict=True))
        spikes = {
            node: np.stack([step[index] for step in steps]) for index, node in enumerate(self.nodes)
        }
        return np.mean(logits, axis=0, dtype=np.float32), spikes

    def _start(self, count: int) -> dict[str, NDArray[np.float32]]:
        """Return V_0 of every node with a membrane, [N, ...]."""
        shapes = {entry.name: entry.shape[1:] for entry in self._step.get_inputs()}
        start = {}
        for node, value in self._initial.items():
            shape = shapes[f"v.{node}"]
            try:
                one = np.asarray(value, np.float32)
                one = one.reshape(shape) if one.ndim else np.broadcast_to(one, shape)
            except (TypeError, ValueError) as problem:
                raise EngineError(f"onnx: initial_state of {node} is unusable: {problem}") from None
            start[node] = np.repeat(one[None], count, axis=0)
        return start

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        shape = tuple(self._step.get_inputs()[0].shape[1:])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}, the models take uint8 "
                f"[N, {', '.join(map(str, shape))}]; use the data set the graph was trained for"
            )
        for start in range(0, max(1, len(images)), _BATCH):
            yield images[start : start + _BATCH].astype(np.float32) / np.float32(255)


def _session(path: Path, threads: int) -> Any:
    if not path.is_file():
        more = " --onnx-weights int8" if path.stem.endswith("int8") else ""
        raise BundleError(f"{path}: no such file; export the bundle with --target onnx{more}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        # Bytes, not the path: a model may then not name other files as external data.
        return onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as problem:  # onnxruntime has a different class for every stage
        detail = (str(problem).splitlines() or [""])[0][:160]
        raise BundleError(f"{path}: not a readable ONNX model ({detail}); export again") from None


def _property(path: Path, session: Any, key: str) -> Any:
    texts = session.get_modelmeta().custom_metadata_map
    try:
        return json.loads(texts[key])
    except (KeyError, ValueError):
        raise BundleError(
            f"{path}: the model's metadata has no {key!r}; it was not written by stars-deploy, "
            "export the bundle again"
        ) from None


def _call(session: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
    try:
        answer: list[Any] = session.run(names, feeds)
    except Exception as problem:
        detail = (str(problem).splitlines() or [""])[0][:160]
        raise EngineError(f"onnx: onnxruntime failed ({detail}); export the model again") from None
    return answer
