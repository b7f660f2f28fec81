"""Results of `validate` and `demo`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from stars_deploy.results.parts import Engine, Finding, Modeled, closed
from stars_deploy.results.training import Evaluated


@closed
class Reference(TypedDict):
    """What the engine was compared with."""

    engine: str
    """float, integer or training."""
    device: str
    """cpu or cuda."""
    recorded: bool
    """Whether its answers were recorded at export, and not computed now."""


@closed
class Training(TypedDict):
    """What training.json says."""

    device: str
    """cpu or cuda."""
    accuracy: float
    """Top-1, a fraction."""
    delta: float | None
    """Target - training, where both saw the same images."""
    data: str | None
    """Name of the data set."""
    n: int | None
    """Images."""


@closed
class Accuracy(TypedDict):
    """Top-1 of both sides, fractions of the labelled images."""

    reference: float
    """Of the reference."""
    target: float
    """Of the engine."""
    delta: float
    """target - reference."""


@closed
class Place(TypedDict):
    """Where in a layer two engines part; numbers count from 0."""

    image: int
    """Number of the image."""
    neuron: list[int]
    """Indices of the neuron in its layer."""
    reference: int
    """Its spike in the reference, 0 or 1."""
    target: int
    """Its spike in the engine, 0 or 1."""


@closed
class Divergence(TypedDict):
    """Where two engines part first; numbers count from 0."""

    node: str
    """Node of graph.nir."""
    step: int
    """Time step."""
    image: int
    """Number of the image."""
    neuron: list[int]
    """Indices of the neuron in its layer."""
    reference: int
    """Its spike in the reference, 0 or 1."""
    target: int
    """Its spike in the engine, 0 or 1."""
    margin: float | None
    """H - V_th of the reference there, in units of V."""
    near_tie: bool
    """Whether summation in another order explains it."""


@closed
class LayerParity(TypedDict):
    """One layer in both engines; null where only totals are known."""

    name: str
    """Node of graph.nir."""
    neurons: int
    """Neurons of the layer."""
    rate: float
    """Spikes of the reference per neuron and step."""
    state: Literal["active", "silent", "saturated"]
    """silent below 0.5 %, saturated above 95 %."""
    spikes_reference: int
    """Summed over images, steps and neurons."""
    spikes_target: int
    """The same of the engine."""
    relative_difference: float
    """|target - reference| / max(reference, 1), in spikes."""
    mismatches: int | None
    """Spikes that differ, each engine on its own inputs."""
    isolated_mismatches: int | None
    """Spikes that differ on equal inputs, near ties excluded."""
    near_ties: int | None
    """Differing spikes of neurons that first differ with |H - V_th| <= 1e-5."""
    isolated_relative_difference: float | None
    """relative_difference on equal inputs: what this layer alone adds."""
    first_step: int | None
    """First time step that differs, from 0."""
    first_at: Place | None
    """Where in that step."""


@closed
class Readout(TypedDict):
    """Largest difference of the logits."""

    max_abs_difference: float | None
    """Each engine on its own inputs."""
    isolated_max_abs_difference: float | None
    """On equal inputs."""


@closed
class Tolerances(TypedDict):
    """The rule of the verdict; which keys it has depends on the engine."""

    source: str
    """Where the rule comes from."""
    mismatches: NotRequired[int]
    """Differing spikes allowed."""
    readout_abs: NotRequired[float]
    """Difference of logits allowed."""
    isolated_mismatches: NotRequired[int]
    """Differing spikes allowed on equal inputs, near ties excluded."""
    near_tie_abs: NotRequired[float]
    """|H - V_th| up to which a difference is a near tie."""
    readout_relative: NotRequired[float]
    """Difference of logits allowed, relative to the largest logit."""
    accuracy_delta: NotRequired[float]
    """Difference of accuracies allowed."""
    total_spikes_relative: NotRequired[float]
    """Relative difference of all spikes allowed."""
    layer_spikes_relative: NotRequired[float]
    """Relative difference of a layer's spikes allowed."""


@closed
class Also(TypedDict):
    """A further engine that judged the same images."""

    engine: Engine
    """Who computed."""
    layers: list[LayerParity]
    """In the order of the graph."""
    first_divergence: Divergence | None
    """Where they part first."""
    readout: Readout
    """Largest difference of the logits."""


@closed
class NotRun(TypedDict):
    """An engine that was not run."""

    name: str
    """Of the engine."""
    reason: str
    """Why not."""


@closed
class Validated(TypedDict):
    """`validate`: the content of BUNDLE/validation.json."""

    schema: int
    """Version of this document."""
    verdict: Literal["pass", "fail"]
    """fail ends the command with 3."""
    reason: str | None
    """The first failure in words; null for a pass."""
    profile: str
    """Name of the hardware profile."""
    engine: Engine
    """Who was judged: the target."""
    reference: Reference
    """What it was compared with."""
    training: Training | None
    """What training measured; null where the bundle does not say."""
    images: str
    """Which images."""
    n: int
    """Images."""
    accuracy: Accuracy | None
    """Null without labels."""
    agreement: float | None
    """Images of which both predict the same class, a fraction."""
    layers: list[LayerParity]
    """In the order of the graph."""
    first_divergence: Divergence | None
    """Where they part first; null where all spikes agree."""
    readout: Readout
    """Largest difference of the logits."""
    energy: list[Modeled]
    """Modeled energy and latency; empty where the profile has no constants."""
    tolerances: Tolerances
    """The rule of the verdict."""
    findings: list[Finding]
    """What was found; every error of them makes the verdict fail."""
    also: list[Also]
    """Further engines on the same images, such as lava-netx beside lava."""
    engines_not_run: list[NotRun]
    """All others, with reasons."""
    command: str
    """That repeats it, with the bundle's name instead of its folder."""
    tool_version: str
    """Version of this package."""
    manifest_sha256: str
    """Of the manifest of the bundle that was judged."""
    earlier: NotRequired[list[Validated]]
    """Verdicts of other engines on the same bundle, the latest first; absent in these."""


@closed
class Demonstrated(TypedDict):
    """`demo`: the whole journey."""

    n: int
    """Evaluation images."""
    accuracy: dict[str, float]
    """By network, a fraction."""
    training: Evaluated
    """RUN/training.json."""
    validations: list[Validated]
    """One validation.json per engine that ran."""
    verdict: Literal["pass", "fail"]
    """pass where all of them pass."""
    seconds: dict[str, float]
    """By stage."""
    report: str
    """The HTML report."""
