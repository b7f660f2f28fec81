"""Every packaged recipe of the paper starts: one step of each phase, through to the student.

The networks have an eighth of their channels, batches a quarter of their images, and of steps,
loops and epochs there is one; losses and optimisers are the recipe's own.
"""

from __future__ import annotations

import pytest
import torch

from stars_deploy.assets import asset
from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation.schedule import steps
from stars_deploy.distillation.session import Session
from stars_deploy.networks.families import TWIN, build_teacher, seeded

pytestmark = pytest.mark.slow
NAMES = sorted(path.parent.name for path in asset("models").glob("paper-*/recipe.toml"))


def shortened(name: str) -> list[str]:
    whole = load_recipe(name)
    method, warmup = whole.synthesis.method, min(whole.run.warmup, 1)
    changes = [
        f"synthesis.{method}.g_steps=1",
        f"synthesis.batch_size={whole.synthesis.batch_size // 4}",
        f"kd.batch_size={whole.kd.batch_size // 4}",
        "kd.steps=1",
        f"run.warmup={warmup}",
        f"run.epochs={warmup + 1}",
        "teacher.args.width=0.125",
    ]
    if whole.student.architecture != TWIN:
        changes.append("student.args.width=0.125")
    if method == "nayer":
        changes += ["synthesis.nayer.g_loops=1", "synthesis.nayer.gwp_loops=1"]
    return changes


def test_the_papers_recipes_are_there():
    assert len(NAMES) == 20


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_the_paper_does_one_step_of_each_phase(name):
    recipe = load_recipe(name, shortened(name))
    session = Session(recipe, seeded(build_teacher, recipe, 0))
    before = {key: value.clone() for key, value in session.student.state_dict().items()}
    logged = {step.phase: session.advance(step) for step in steps(recipe)}
    assert set(logged) == {"synthesis", "kd"}
    judged = {"bn", "oh", "adv", "rca", "tar"}  # the student takes part in the last round
    assert judged <= set(logged["synthesis"])
    assert len(session.pool) == recipe.synthesis.batch_size * (1 + recipe.run.warmup)
    moved = [k for k, v in session.student.state_dict().items() if not torch.equal(before[k], v)]
    assert moved and session.finite()
