"""Parts that several results have in common."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

T = TypeVar("T")

#: A result has exactly the keys that it declares; the text below a key says what it means. Results
#: do not inherit: pydantic finds no text below the keys of a base.
closed = with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))

Kind = Literal["measured", "simulated", "modeled"]
Counts = dict[str, int]
Interval = list[float]


@closed
class Versions(TypedDict):
    """What the numbers depend on."""

    stars_deploy: str
    """Version of this package."""
    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""
    numpy: str
    """Version of numpy."""
    norse: str
    """Version of norse."""
    nir: str
    """Version of nir."""


@closed
class Hardware(TypedDict):
    """The class of machine that computed."""

    device: str
    """cpu or cuda."""
    processor: str
    """Architecture of the CPU, or name of the GPU."""
    threads: NotRequired[int]
    """CPU threads; absent on a GPU."""


@closed
class Engine(TypedDict):
    """Who computed the spikes."""

    name: str
    """float, integer, onnx, onnx-int8, lava-fixed_pt, lava-netx, or that of a trace."""
    version: str
    """Of the engine."""
    kind: Kind
    """measured (a device ran it) or simulated."""
    run_config: NotRequired[Any]
    """Of a run elsewhere: Lava's run configuration."""
    network: NotRequired[Any]
    """Of a run elsewhere: which of the bundle's networks ran."""
    timings: NotRequired[Any]
    """Of a run elsewhere: seconds, as its script noted them."""
    versions: NotRequired[Any]
    """Of a run elsewhere: versions of what ran it."""
    trace_sha256: NotRequired[str]
    """Of a run elsewhere: SHA-256 of the trace."""


@closed
class Finding(TypedDict):
    """A fact about a graph on a target."""

    code: str
    """What kind of fact; stable, for scripts."""
    severity: Literal["error", "warning", "info"]
    """An error is what makes a graph not fit, or a verdict fail."""
    node: str | None
    """Node of graph.nir, null where it is about the whole."""
    message: str
    """In words."""
    value: float | str | None
    """What was found, in the unit that the message names."""
    limit: float | str | None
    """What is allowed, in the same unit."""
    remedy: str
    """What to do about it, may be empty."""


@closed
class Modeled(TypedDict):
    """One modeled quantity; nothing of it is measured."""

    name: str
    """Of the quantity, such as synaptic_operations or total."""
    value: float
    """In `unit`."""
    unit: str
    """Such as nJ/image."""
    kind: Literal["modeled"]
    """Always modeled."""
    source: str
    """Count, constant, and where the constant is published."""
    confidence: str
    """code, paper, secondary, inferred or choice: that of the weakest constant."""


@closed
class Origin(TypedDict):
    """What a bundle or a result was made from; names, never folders."""

    kind: Literal["run", "bundle", "nir"]
    """A distillation run, a bundle, or a .nir file."""
    name: str
    """Name of the folder or file."""
    sha256: NotRequired[str]
    """Of student.safetensors or of the .nir file."""
    recipe: NotRequired[str]
    """Name of the run's recipe."""
    method: NotRequired[str]
    """The run's method in words."""
    teacher_sha256: NotRequired[str]
    """Of the teacher's weights."""
    read_as: NotRequired[list[str]]
    """What was read into a graph of another tool."""


@closed
class Teacher(TypedDict):
    """The teacher of a run."""

    family: str
    """Its network family."""
    sha256: str | None
    """Of its weights."""
    parameters: NotRequired[int]
    """Its parameters."""
    source: NotRequired[str]
    """What --teacher named, of an imported one."""


@closed
class Spread(TypedDict):
    """A quantity over seeds."""

    mean: float
    """Over the seeds."""
    sd: float | None
    """Sample standard deviation, null of one seed."""
    n: int
    """Number of seeds."""
    values: list[float]
    """One per seed."""
