"""Results of `export`, `check`, `simulate` and `sweep`, and a bundle's manifest."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from stars_deploy.results.parts import (
    Counts,
    Engine,
    Finding,
    Interval,
    Modeled,
    Origin,
    Versions,
    closed,
)


@closed
class Golden(TypedDict):
    """The recorded images of a bundle."""

    n: int
    """Images."""
    source: str
    """evaluation, synthetic, random or file."""


@closed
class OnnxModels(TypedDict):
    """How ONNX models are written."""

    opset: int
    """Version of the default operator set."""
    weights: Literal["float32", "int8"]
    """int8: there is a second pair of models with int8 weights."""


@closed
class Exported(TypedDict):
    """`export`: what was written."""

    bundle: str
    """Folder of the bundle, as given."""
    targets: list[str]
    """nir, and what was asked for of onnx and loihi."""
    profile: str | None
    """Whose integers it holds; null without loihi."""
    onnx: OnnxModels | None
    """How its ONNX models are written; null without onnx."""
    source: Origin
    """What it was made from."""
    golden: Golden
    """What golden.npz holds."""
    notes: list[str]
    """What was read into a graph of another tool."""
    files: list[str]
    """Every sealed file, by its place in the bundle."""
    tool_version: str
    """Version of this package."""


@closed
class Manifest(TypedDict):
    """BUNDLE/manifest.json: the seal of a bundle."""

    schema: int
    """Version of this document."""
    tool_version: str
    """Version of this package."""
    source: Origin
    """What the bundle was made from."""
    profile: str | None
    """Whose integers it holds; null without loihi."""
    targets: list[str]
    """nir, and what was asked for of onnx and loihi."""
    seeds: dict[str, int | None]
    """By what was seeded: distill, golden."""
    sha256: dict[str, str]
    """Of every file but the manifest, validation.json, report.html and card.md."""


@closed
class Named(TypedDict):
    """What was looked at."""

    kind: Literal["run", "bundle", "nir"]
    """A distillation run, a bundle, or a .nir file."""
    name: str
    """Name of the folder or file."""


@closed
class Resources(TypedDict):
    """What one core holds, or may hold."""

    neurons: int | None
    """Neurons."""
    synaptic_memory_bit: int | None
    """Bits of synaptic memory."""
    input_axons: int | None
    """Input axons."""
    output_axons: int | None
    """Output axons."""


@closed
class PlacedPopulation(TypedDict):
    """One population and the cores that it takes."""

    name: str
    """Of the population."""
    node: str | None
    """Node of graph.nir; null for a relay that the lowering adds."""
    neurons: int
    """Neurons in all."""
    cores: int
    """Cores that it takes."""
    first_core: int
    """Number of the first one."""
    chips: list[int]
    """Numbers of the chips they are on."""
    fullest: Resources
    """The most that one of its cores takes of each resource."""


@closed
class Totals(TypedDict):
    """The whole network on the chip."""

    cores: int
    """Cores taken."""
    cores_available: int | None
    """Cores of the system; null where not known."""
    chips: int
    """Chips taken."""
    neurons: int
    """Neurons, relays included."""
    synaptic_memory_bit: int
    """Bits of synaptic memory."""
    convolution_sharing: bool
    """Whether a core stores a convolution's kernel once."""


@closed
class Placement(TypedDict):
    """Where the layers lie."""

    populations: list[PlacedPopulation]
    """In the order of the graph."""
    totals: Totals
    """The whole network."""
    core_limits: Resources
    """Of one core; null where not known, or where cores differ."""


@closed
class Checked(TypedDict):
    """`check`: what a chip cannot hold or compute, and where layers lie."""

    source: Named
    """What was looked at."""
    profile: str
    """Name of the hardware profile."""
    findings: list[Finding]
    """Everything at once."""
    placement: Placement | None
    """Null where nothing could be placed."""
    picture: str | None
    """The PNG that was written, as given."""
    exit_code: Literal[0, 2, 4]
    """0 fits, 2 an operator is missing, 4 a limit is exceeded."""
    tool_version: str
    """Version of this package."""


@closed
class SimulatedLayer(TypedDict):
    """Spikes of one layer."""

    name: str
    """Node of graph.nir."""
    neurons: int
    """Neurons of the layer."""
    rate: float
    """Spikes per neuron and step."""
    state: Literal["active", "silent", "saturated"]
    """silent below 0.5 %, saturated above 95 %."""
    spikes: int
    """Summed over images, steps and neurons."""


@closed
class Simulated(TypedDict):
    """`simulate`: one engine on some images."""

    profile: str
    """Name of the hardware profile."""
    engine: Engine
    """Who computed."""
    notes: list[str]
    """What was read into a graph of another tool."""
    images: str
    """Which images."""
    n: int
    """Images."""
    accuracy: float | None
    """Top-1, a fraction of the labelled images; null without labels."""
    layers: list[SimulatedLayer]
    """In the order of the graph."""
    energy: list[Modeled]
    """Modeled energy and latency; empty where the profile has no constants."""
    tool_version: str
    """Version of this package."""


@closed
class SweepPoint(TypedDict):
    """One network of a sweep; all but `problem` null where it could not run."""

    engine: str
    """float or integer."""
    T: int
    """Time steps per image."""
    weight_bits: int | None
    """Of the integer weights; null in float."""
    n: int
    """Images."""
    labelled: int
    """Of these, images with a label."""
    correct: int | None
    """Of these, classified right."""
    accuracy: float | None
    """correct / labelled."""
    interval: Interval | None
    """Its 95 % Wilson interval, [low, high]."""
    agreeing: int | None
    """Images with the class of the float graph at its own T."""
    agreement: float | None
    """agreeing / n."""
    agreement_interval: Interval | None
    """Its 95 % Wilson interval, [low, high]."""
    spikes: Counts | None
    """Per node, summed over images, steps and neurons."""
    spikes_per_image: float | None
    """Of all nodes together."""
    synaptic_operations: float | None
    """Per image."""
    problem: str | None
    """Why it could not run."""


@closed
class Swept(TypedDict):
    """`sweep`: the content of OUT/sweep.json."""

    schema: int
    """Version of this document."""
    source: Origin
    """The graph."""
    profile: str
    """Name of the hardware profile."""
    engine: Engine
    """Who computed the points; float points are there too."""
    T: int
    """The graph's own number of steps."""
    steps: list[int]
    """Numbers of steps that were run."""
    bits: list[int]
    """Weight bits that were run, at the graph's own T."""
    images: str
    """Which images."""
    n: int
    """Images."""
    confidence: float
    """Of the intervals, a fraction."""
    interval: str
    """Kind of the intervals."""
    reference: SweepPoint
    """The float graph at its own T."""
    points: list[SweepPoint]
    """One per engine, T and bits."""
    notes: list[str]
    """What a reader must know."""
    versions: Versions
    """What it was made with."""
    tool_version: str
    """Version of this package."""
    command: str
    """That repeats it, with names instead of folders."""
