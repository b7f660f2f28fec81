"""How the ONNX models are written: the operator set they use, and how they hold weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from stars_deploy.errors import InputError, nearest

Weights = Literal["float32", "int8"]
#: By weights: the model of all steps, and that of one step.
FILES: dict[Weights, tuple[str, str]] = {
    "float32": ("model.onnx", "model_step.onnx"),
    "int8": ("model_int8.onnx", "model_step_int8.onnx"),
}
#: Operator sets that hold every operator used here, each of them tried. Gemm without a bias came
#: with 11, DequantizeLinear with a scale per channel with 13.
OPSETS: dict[Weights, range] = {"float32": range(11, 24), "int8": range(13, 24)}
OPSET = 20


@dataclass(frozen=True)
class OnnxOptions:
    """opset: version of the default operator set; weights: int8 writes a second pair of models.

    Raises: InputError for an operator set that lacks an operator, or unknown weights.
    """

    opset: int = OPSET
    weights: Weights = "float32"

    def __post_init__(self) -> None:
        if self.weights not in OPSETS:
            near = nearest(self.weights, get_args(Weights))
            raise InputError(f"--onnx-weights {self.weights!r} is unknown{near}")
        valid = OPSETS[self.weights]
        if self.opset not in valid:
            raise InputError(
                f"--opset {self.opset}: ONNX models with {self.weights} weights can be written "
                f"for {valid[0]} to {valid[-1]}; choose one of these (default {OPSET})"
            )


DEFAULT = OnnxOptions()


def onnx_options(opset: int | None, weights: str | None, wanted: bool) -> OnnxOptions | None:
    """Return the options as given, None if no ONNX model is `wanted`.

    Raises: InputError as OnnxOptions does, and for an option that would have no effect.
    """
    if wanted:
        kind = cast("Weights", "float32" if weights is None else weights)
        return OnnxOptions(OPSET if opset is None else opset, kind)
    for option, value in (("--opset", opset), ("--onnx-weights", weights)):
        if value is not None:
            raise InputError(f"{option} {value}: is about ONNX models; add --target onnx")
    return None
