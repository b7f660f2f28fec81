"""The Python API: one function per command, with the command's options as arguments.

Every function returns the dictionary that the command prints under --json, whose keys docs/json.md
describes, and raises the exceptions of `stars_deploy.errors`; their messages name options as on
the command line (`--golden-images` is the argument `golden_images`). A verdict is no error: `check`
and `validate` return the dictionary that says what does not fit or differs. Paths are str or Path.
Nothing is printed; `progress` is called with what is done, steps completed, and steps in all.
"""

from stars_deploy.api.deployment import check, export, simulate, sweep, validate
from stars_deploy.api.inventory import demo, doctor, profiles, schema, zoo
from stars_deploy.api.study import compare, operating_point, tensorboard
from stars_deploy.api.training import (
    distill,
    evaluate,
    finetune,
    import_teacher,
    train_teacher,
)

__all__ = [
    "check",
    "compare",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "import_teacher",
    "operating_point",
    "profiles",
    "schema",
    "simulate",
    "sweep",
    "tensorboard",
    "train_teacher",
    "validate",
    "zoo",
]
