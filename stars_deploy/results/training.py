"""Results of `distill`, `evaluate`, `finetune` and `teacher train`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from stars_deploy.results.parts import Counts, Hardware, Kind, Origin, Teacher, Versions, closed


@closed
class Distilled(TypedDict):
    """`distill`: the content of RUN/summary.json."""

    name: str
    """Of the recipe."""
    method: str
    """In words: warm start, synthesis, STARS."""
    T: int
    """Time steps per image."""
    seed: int
    """Of everything random."""
    epochs: int
    """In all."""
    warmup_epochs: int
    """Of these, epochs without student updates."""
    synthesis_steps: int
    """Optimisation steps of synthesis."""
    synthetic_images: int
    """Images made in all; the pool may hold fewer."""
    calibrations: int
    """Calibrations of the warm start, 0 or 1."""
    student_updates: int
    """Updates of the student's weights."""
    student_images: int
    """Images in these updates, repeated ones counted again."""
    teacher: Teacher
    """Whom the student was distilled from."""
    student_parameters: int
    """Of the student; a twin has one more per layer of PLIF neurons."""
    pool_images: int
    """Synthetic images held at the end."""
    data: Literal["none"]
    """No data set was opened."""
    selection: str
    """Which weights were kept."""
    device: str
    """cpu or cuda."""
    processor: str
    """Architecture of the CPU, or name of the GPU."""
    threads: NotRequired[int]
    """CPU threads; absent on a GPU."""
    versions: Versions
    """What it was made with."""
    wall_time_s: float
    """Seconds, over all parts of a resumed run."""


@closed
class Plan(TypedDict):
    """`distill --dry-run`: what a run would do; nothing is run or written."""

    name: str
    """Of the recipe."""
    method: str
    """In words: warm start, synthesis, STARS."""
    T: int
    """Time steps per image."""
    seed: int
    """Of everything random."""
    epochs: int
    """In all."""
    warmup_epochs: int
    """Of these, epochs without student updates."""
    synthesis_steps: int
    """Optimisation steps of synthesis."""
    synthetic_images: int
    """Images made in all; the pool may hold fewer."""
    calibrations: int
    """Calibrations of the warm start, 0 or 1."""
    student_updates: int
    """Updates of the student's weights."""
    student_images: int
    """Images in these updates, repeated ones counted again."""
    teacher: str
    """The teacher's network family."""
    teacher_parameters: int
    """Parameters of the teacher."""
    student_parameters: int
    """Parameters of the student."""
    device: str
    """cpu or cuda."""
    recipe: dict[str, Any]
    """The recipe with every value resolved, as in RUN/recipe.toml."""


@closed
class Evaluated(TypedDict):
    """`evaluate`: the content of RUN/training.json, and of that in a bundle."""

    device: str
    """cpu or cuda."""
    hardware: Hardware
    """The machine."""
    kind: Kind
    """Always measured."""
    data: str
    """Name of the data set, in brackets the file."""
    n: int
    """Images."""
    accuracy: float
    """Top-1, a fraction of the images, by the mean logits of all T steps."""
    accuracy_by_t: list[float]
    """The same by the mean logits of the first t steps, t = 1..T."""
    spikes: Counts
    """Per node, summed over images, steps and neurons."""
    rate: dict[str, float]
    """Per node, spikes per neuron and step."""
    T: int
    """Time steps per image."""
    student_sha256: str
    """Of student.safetensors."""
    versions: Versions
    """What it was made with."""
    teacher_accuracy: NotRequired[float]
    """Top-1 of the teacher on the same images; in a demo, and of an imported teacher."""


@closed
class ImportedTeacher(TypedDict):
    """`teacher import`: the content of OUT/teacher.json, and of that in a run."""

    teacher: str
    """What --teacher named, without folders."""
    module: str
    """The class of the network."""
    weights: str
    """Name of the file of weights."""
    weights_sha256: str
    """Of that file."""
    parameters: int
    """Of the teacher."""
    classes: int
    """Logits."""
    largest_relative_difference: float
    """Of a logit of the traced network from the teacher's, relative to the largest logit."""
    neurons: dict[str, str]
    """Which activation of the teacher became which neurons."""
    notes: list[str]
    """What differs in the twin, or was left out."""


@closed
class TrainedTeacher(TypedDict):
    """`teacher train`: the content of OUT/summary.json."""

    accuracy: float
    """Top-1 on the test images, a fraction."""
    n: int
    """Test images."""
    n_train: int
    """Training images."""
    kind: Kind
    """Always measured."""
    data: str
    """Name of the data set."""
    seed: int
    """Of everything random."""
    sha256: str
    """Of teacher.safetensors."""
    parameters: int
    """Parameters of the network."""
    command: str
    """That repeats it."""
    hardware: Hardware
    """The machine."""
    versions: Versions
    """What it was made with."""
    wall_s: float
    """Seconds."""


@closed
class Converted(TypedDict):
    """`tensorboard`: what was written."""

    events: str
    """Folder of the event files, as given."""
    scalars: int
    """Values written."""
    tags: list[str]
    """Names of the curves: phase, metric, and place in a list."""


@closed
class TrainedOn(TypedDict):
    """What weights were fine-tuned on."""

    images: Literal["synthetic"]
    """Always synthetic."""
    run: str
    """Name of the run that holds them."""
    n: int
    """Images."""


@closed
class Stages(TypedDict):
    """A fraction of images, before and after fine-tuning."""

    n: int
    """Images."""
    float_before: float
    """The float graph as it was."""
    integers_before: float
    """Its integers, rounded."""
    integers_corrected: float
    """These with corrected biases."""
    float_after: float
    """The trained graph in float."""
    integers_after: float
    """Its integers."""
    images: NotRequired[str]
    """Which images; always synthetic for agreement."""
    data: NotRequired[str]
    """Name of the labelled data; only for accuracy."""
    teacher: NotRequired[float]
    """The teacher; only for accuracy."""


@closed
class ComparedSpikes(TypedDict):
    """The trained network against the integer engine."""

    images: int
    """Images compared."""
    spikes: int
    """Spikes of the integer engine on them."""
    mismatches: int
    """Spikes that differ; 0 unless something is wrong."""


@closed
class Population(TypedDict):
    """Integers of one population."""

    name: str
    """Of the population."""
    scale: float
    """Integer units per unit of V."""
    threshold: int
    """In integer units."""


@closed
class Finetuned(TypedDict):
    """`finetune`: the content of OUT/finetune.json."""

    schema: int
    """Version of this document."""
    source: Origin
    """The graph that was fine-tuned."""
    profile: str
    """Name of the hardware profile."""
    bits: int | None
    """Of the weights."""
    updates: int
    """Of the weights."""
    lr: float
    """Learning rate, relative to the largest weight."""
    seed: int
    """Of the order of the images."""
    batch_size: int
    """Images per update."""
    tau: float
    """Temperature of distillation."""
    trained_on: TrainedOn
    """The images."""
    teacher: Teacher
    """Whose logits were the aim."""
    agreement: Stages
    """Images on which the teacher's class is given, a fraction."""
    accuracy: Stages | None
    """Top-1 on labelled images, a fraction; null without --data."""
    compared: ComparedSpikes
    """A check of the training itself."""
    populations: list[Population]
    """Thresholds and scales of the trained network."""
    device: str
    """cpu or cuda."""
    processor: str
    """Architecture of the CPU, or name of the GPU."""
    threads: NotRequired[int]
    """CPU threads; absent on a GPU."""
    versions: Versions
    """What it was made with."""
    wall_time_s: float
    """Seconds."""
