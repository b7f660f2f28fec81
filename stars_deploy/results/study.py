"""Results of `compare` and `operating-point`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from stars_deploy.results.parts import Interval, Kind, Spread, Versions, closed


@closed
class Paired(TypedDict):
    """Differences to the baseline, paired by seed."""

    mean: float
    """Over the seeds."""
    sd: float | None
    """Sample standard deviation, null of one seed."""
    n: int
    """Number of seeds."""
    values: list[float]
    """One per seed."""
    interval: Interval | None
    """95 % bootstrap interval of the mean, [low, high]; null of fewer than 3 seeds."""


@closed
class SeededRun(TypedDict):
    """One run of a comparison."""

    seed: int
    """Of everything random."""
    method: str
    """In words: warm start, synthesis, STARS."""
    last: float
    """Top-1 after the last step, a fraction."""
    best: float
    """Top-1 of the best epoch, which is selection by test labels."""
    accuracy_by_epoch: list[float]
    """Top-1 after every training epoch."""
    wall_time_s: float
    """Seconds."""
    student_updates: int
    """Updates of the student's weights."""
    synthetic_images: int
    """Images made in all."""
    summary: str
    """Name of the run's summary."""


@closed
class Cell(TypedDict):
    """One setting of a comparison."""

    cell: str
    """Name of the setting."""
    overrides: list[str]
    """The values of the recipe that it stands for."""
    method: str
    """In words: warm start, synthesis, STARS."""
    last: Spread
    """Top-1 after the last step, a fraction."""
    best: Spread
    """Top-1 of the best epoch, which is selection by test labels."""
    difference: Paired | None
    """last - last of the baseline; null for the baseline."""
    wall_time_s: Spread
    """Seconds."""
    runs: list[SeededRun]
    """One per seed."""


@closed
class Compared(TypedDict):
    """`compare`: the content of OUT/compare.json."""

    recipe: str
    """Name of the recipe."""
    baseline: str
    """Name of the first setting."""
    data: str
    """Name of the data set, in brackets the file."""
    n: int
    """Test images."""
    seeds: list[int]
    """In the order of the runs."""
    selection: str
    """What last and best mean."""
    cells: list[Cell]
    """One per setting."""
    device: str
    """cpu or cuda."""
    processor: str
    """Architecture of the CPU, or name of the GPU."""
    threads: NotRequired[int]
    """CPU threads; absent on a GPU."""
    versions: Versions
    """What it was made with."""
    teacher_accuracy: float
    """Top-1 of the teacher on the same images, a fraction."""


@closed
class Currents(TypedDict):
    """Input currents and rate of a layer on one kind of images."""

    tail_mass: list[float]
    """Share of neurons and images whose time-mean current exceeds each threshold."""
    predicted_rate: float
    """Their mean: spikes per neuron and step by STARS Eq. 9."""
    rate: float
    """Spikes per neuron and step."""
    current_mean: float
    """Mean of the current, in units of V."""
    current_sd: float
    """Its standard deviation, in units of V."""


@closed
class LayerOperation(TypedDict):
    """One layer on synthetic and real images."""

    name: str
    """Node of graph.nir."""
    synthetic: Currents
    """On the run's synthetic images."""
    real: NotRequired[Currents]
    """On real images; absent without --data, as the two keys below."""
    relative_difference: NotRequired[float]
    """(synthetic - real) / real, of the rates."""
    firing: NotRequired[Literal["over", "under", "alike"]]
    """over or under beyond 10 %."""


@closed
class OperatingPoint(TypedDict):
    """`operating-point`: the content of RUN/operating_point.json."""

    thresholds: list[float]
    """theta_t: constant currents from which a neuron at rest fires by step t, in units of V."""
    T: int
    """Time steps per image."""
    images: dict[str, int]
    """Images of each kind: synthetic, real."""
    data: str | None
    """Name of the real data; null without --data."""
    layers: list[LayerOperation]
    """In the order of the network."""
    kind: Kind
    """Always measured."""
    device: str
    """cpu or cuda."""
    processor: str
    """Architecture of the CPU, or name of the GPU."""
    threads: NotRequired[int]
    """CPU threads; absent on a GPU."""
    versions: Versions
    """What it was made with."""
