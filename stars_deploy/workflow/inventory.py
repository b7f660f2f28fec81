"""`stars-deploy profiles` and `zoo`: what the package holds."""

from __future__ import annotations

from typing import Any

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile, profile_names
from stars_deploy.config.recipe import load_recipe


def profiles() -> dict[str, Any]:
    """Return the description of every packaged hardware profile, by name."""
    names = profile_names()
    return {"profiles": {name: load_profile(name).identity.description for name in names}}


def zoo() -> dict[str, Any]:
    """Return name, teacher, data and T of every packaged model."""
    models = []
    for path in sorted(asset("models").glob("*/recipe.toml")):
        recipe = load_recipe(path)
        models.append(
            {
                "name": path.parent.name,
                "teacher": recipe.teacher.family,
                "data": recipe.data.name,
                "T": recipe.student.T,
            }
        )
    return {"models": models}
