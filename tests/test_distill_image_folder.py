"""`pool.dir`: the images of the pool as files, also over interruptions."""

import json
import re

import numpy as np
import pytest
import tomli_w
from PIL import Image
from tiny_distillation import DOCUMENT, results, tiny_model, tiny_teacher

from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation import checkpoint
from stars_deploy.distillation.session import Session
from stars_deploy.errors import InputError
from stars_deploy.networks.weights import load_teacher, save_weights
from stars_deploy.workflow.compare import compare
from stars_deploy.workflow.distill import distill


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Run in a folder of the test's own: pool.dir is relative to the current folder."""
    monkeypatch.chdir(tmp_path)


def run(model, out, *overrides, **options):
    recipe = load_recipe(model, ["pool.dir=images", *overrides])
    return distill(recipe, out, origin=model, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(monkeypatch, steps):
    """Checkpoint after every second step, and stop after `steps` steps."""
    advance, done = Session.advance, iter(range(1, 10_000))

    def counted(session, step):
        if next(done) > steps:
            raise Stop
        return advance(session, step)

    ticks = iter(range(10_000))
    monkeypatch.setattr(Session, "advance", counted)
    monkeypatch.setattr(checkpoint.Timer, "due", lambda timer: next(ticks) % 2 == 1)


def interrupted(model, out, monkeypatch, steps, *overrides, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            run(model, out, *overrides, **options)


def test_the_files_are_the_images_of_the_pool(model, tmp_path):
    run(model, tmp_path / "run", "pool.max_images=1000")
    state = checkpoint.load(tmp_path / "run")
    assert state is not None
    pool = state["session"]["pool"]
    names = sorted(files(tmp_path / "images"))
    assert len(names) == pool["added"] == len(pool["images"]) == 70
    for number, name in enumerate(names):
        assert name == f"{number:07}_{int(pool['labels'][number])}.png"
        pixels = np.asarray(Image.open(tmp_path / "images" / name))
        assert np.array_equal(pixels, pool["images"][number, 0].numpy())


def test_images_that_left_the_pool_are_kept(model, tmp_path):
    run(model, tmp_path / "run", "pool.max_images=20")
    assert len(files(tmp_path / "images")) == 70


def test_colour_images_keep_their_channels(tmp_path):
    data = {**DOCUMENT["data"], "shape": [3, 8, 8], "mean": [0.4] * 3, "std": [0.3] * 3}
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({**DOCUMENT, "data": data}))
    save_weights(tiny_teacher(load_recipe(path)), tmp_path / "teacher.safetensors")
    run(path, tmp_path / "run", "pool.max_images=1000")
    state = checkpoint.load(tmp_path / "run")
    assert state is not None
    images = state["session"]["pool"]["images"]
    for number, name in enumerate(sorted(files(tmp_path / "images"))):
        pixels = np.asarray(Image.open(tmp_path / "images" / name)).transpose(2, 0, 1)
        assert np.array_equal(pixels, images[number].numpy())


def test_a_run_gives_the_same_numbers_with_and_without(model, tmp_path):
    run(model, tmp_path / "with")
    distill(load_recipe(model), tmp_path / "without", origin=model)
    assert results(tmp_path / "with") == results(tmp_path / "without")
    assert "dir" not in (tmp_path / "without" / "recipe.toml").read_text()


@pytest.mark.parametrize("steps", [1, 5, 12, 17, 24, 35])
def test_a_resumed_run_ends_with_the_same_files(model, tmp_path, monkeypatch, steps):
    small = "pool.max_images=20"  # most images have left the pool when the run stops
    run(model, tmp_path / "whole", small)
    (tmp_path / "images").rename(tmp_path / "expected")
    interrupted(model, tmp_path / "run", monkeypatch, steps, small)
    own = tmp_path / "images" / "mine.txt"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    (tmp_path / "images" / ".0000003_1.png.ab12_x9z.png").write_bytes(b"half")
    run(model, tmp_path / "run", small, resume=True)
    assert own.read_text() == "mine"
    own.unlink()
    assert files(tmp_path / "images") == files(tmp_path / "expected")


def test_images_younger_than_the_checkpoint_are_removed(model, tmp_path, monkeypatch):
    # Written with the step, but the run ended before the checkpoint that would know of them.
    interrupted(model, tmp_path / "run", monkeypatch, 5)
    state = checkpoint.load(tmp_path / "run")
    assert state is not None and state["done"] == 4 and state["session"]["pool"]["added"] == 0
    assert len(files(tmp_path / "images")) == 10
    older = next(iter((tmp_path / "images").iterdir()))
    renamed = older.rename(older.with_name(re.sub("_.", "_9", older.name)))
    run(model, tmp_path / "run", resume=True)
    assert not renamed.exists() and older.exists()


def test_a_folder_in_use_is_refused_before_the_run_is_claimed(model, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"images: pool\.dir holds holiday\.png; .*--resume"):
        run(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert files(tmp_path / "images") == {"holiday.png": b"mine"}
    assert InputError.exit_code == 2


def test_a_file_in_place_of_the_folder_is_refused(model, tmp_path):
    (tmp_path / "images").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        run(model, tmp_path / "run")


def test_files_of_another_run_are_neither_removed_nor_replaced(model, tmp_path, monkeypatch):
    interrupted(model, tmp_path / "run", monkeypatch, 3)
    run(model, tmp_path / "other", "run.seed=1")  # in the folder that the first has not used yet
    before = files(tmp_path / "images")
    with pytest.raises(InputError, match=r"0000000_\d\.png: was not written by this run"):
        run(model, tmp_path / "run", resume=True)
    assert files(tmp_path / "images") == before


def test_resuming_a_run_that_had_not_begun_needs_an_empty_folder(model, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0000000_1.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"0000000_1\.png"):
        run(model, tmp_path / "run", resume=True)


def test_a_complete_run_is_left_alone(model, tmp_path):
    run(model, tmp_path / "run")
    before = files(tmp_path / "images")
    (tmp_path / "run" / checkpoint.FILE).unlink()  # to save space
    run(model, tmp_path / "run", resume=True)
    assert files(tmp_path / "images") == before


def test_the_folder_may_lie_in_the_run(model, tmp_path):
    run(model, tmp_path / "run", "pool.dir=run/images")
    assert len(files(tmp_path / "run" / "images")) == 70


def test_a_checkpoint_that_counted_no_images_is_continued(model, tmp_path):
    recipe = load_recipe(model)
    session = Session(recipe, load_teacher(recipe, origin=model))
    state = session.pool.state_dict()
    del state["added"]
    session.pool.load_state_dict(state)
    assert session.pool.added == 0


def test_images_that_no_png_can_hold_are_refused(model, tmp_path):
    from stars_deploy.distillation.image_folder import image_folder

    overrides = ["pool.dir=images", "data.shape=[2, 8, 8]", "data.mean=[0, 0]", "data.std=[1, 1]"]
    with pytest.raises(InputError, match="2 channels"):
        image_folder(load_recipe(model, overrides))


def test_a_comparison_refuses_it(model, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        images=rng.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8),
        labels=rng.integers(0, 3, 6),
    )
    words = (str(model), ["stars=on,off"], [0], "data.npz", tmp_path / "out")
    with pytest.raises(InputError, match=r"pool\.dir = 'images'.*leave pool\.dir out"):
        compare(*words, ["pool.dir=images"])
    assert not (tmp_path / "out").exists()


def test_the_plan_says_where_images_go(model):
    from stars_deploy.workflow.distill import plan

    planned = plan(load_recipe(model, ["pool.dir=images"]))
    assert json.loads(json.dumps(planned))["recipe"]["pool"]["dir"] == "images"
