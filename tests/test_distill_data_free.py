"""`distill` opens its recipe, the teacher's weights and its own run, and no data set."""

import shutil

from watched import opened

from stars_deploy.assets import asset

SMALL = """
run.epochs=2 run.warmup=1 run.device=cpu run.threads=1 kd.steps=2 kd.batch_size=4
synthesis.batch_size=10
synthesis.nayer.g_steps=2 synthesis.nayer.gwp_loops=1 synthesis.nayer.g_loops=1
synthesis.nayer.harvest_from=0 warm_start.calibration_images=4
"""


IMPORTS = """
from stars_deploy.config.recipe import load_recipe
from stars_deploy.workflow.distill import distill
"""
WORK = """
recipe = load_recipe(sys.argv[1], sys.argv[3:])
distill(recipe, Path(sys.argv[2]), origin=Path(sys.argv[1]))
"""


def test_distill_reads_its_recipe_and_its_teacher_only(tmp_path):
    folder, work = tmp_path / "model", tmp_path / "work"
    work.mkdir()
    shutil.copytree(asset("models", "fashion-mnist"), folder)
    assert (folder / "evaluation.npz").is_file()  # real images lie beside the teacher
    words = [folder / "recipe.toml", work / "run", *SMALL.split()]
    own, others = opened(IMPORTS, WORK, words, work, [folder])
    assert (work / "run" / "student.safetensors").is_file()
    assert own <= {"recipe.toml", "teacher.safetensors", "model"}
    assert "recipe.toml" in own  # the hook does see what is opened
    assert others == set()
