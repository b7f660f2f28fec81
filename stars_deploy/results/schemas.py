"""JSON Schemas of what the commands print under --json and of the files with the same content."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from stars_deploy.errors import InputError, nearest
from stars_deploy.results.deployment import Checked, Exported, Manifest, Simulated, Swept
from stars_deploy.results.inventory import Diagnosed, Failed, Profiles, Zoo
from stars_deploy.results.study import Compared, OperatingPoint
from stars_deploy.results.training import (
    Converted,
    Distilled,
    Evaluated,
    Finetuned,
    ImportedTeacher,
    Plan,
    TrainedTeacher,
)
from stars_deploy.results.validation import Demonstrated, Validated

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: By command, by file, and of an error.
RESULTS: dict[str, Any] = {
    "check": Checked,
    "compare": Compared,
    "demo": Demonstrated,
    "distill": Distilled | Plan,
    "doctor": Diagnosed,
    "evaluate": Evaluated,
    "export": Exported,
    "finetune": Finetuned,
    "operating-point": OperatingPoint,
    "profiles": Profiles,
    "simulate": Simulated,
    "sweep": Swept,
    "teacher-import": ImportedTeacher,
    "teacher-train": TrainedTeacher,
    "tensorboard": Converted,
    "validate": Validated,
    "zoo": Zoo,
    "error": Failed,
    "manifest.json": Manifest,
    "summary.json": Distilled,
    "teacher.json": ImportedTeacher,
    "training.json": Evaluated,
    "validation.json": Validated,
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a command's result or of a file.

    Raises: InputError for a name that has none.
    """
    if name not in RESULTS:
        raise InputError(f"schema {name!r} is unknown{nearest(name, RESULTS)}")
    return {"$schema": DIALECT, **TypeAdapter(RESULTS[name]).json_schema()}
