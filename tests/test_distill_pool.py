"""The image pool: quantisation, capacity, order of drawing, state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stars_deploy.distillation.pool import ImagePool, quantise
from stars_deploy.distillation.randomness import make_rng

SHAPE = (1, 1, 1)


def pool_of(values, max_images=None, seed=0):
    pool = ImagePool(SHAPE, make_rng(seed, "pool"), max_images)
    add(pool, values)
    return pool


def add(pool, values):
    images = (torch.tensor(values, dtype=torch.float64) + 0.5) / 255
    pool.add(images.view(-1, *SHAPE), torch.tensor(values))


def test_quantisation_truncates_and_clamps():
    values = torch.tensor([-0.1, 0.0, 0.5, 0.999, 1.0, 1.2])
    assert quantise(values).tolist() == [0, 0, 127, 254, 255, 255]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_a_full_pool_holds_the_newest_images_with_their_labels(blocks, capacity):
    pool = ImagePool(SHAPE, make_rng(0, "pool"), capacity)
    numbers = iter(range(200))
    everything = []
    for length in blocks:
        block = [next(numbers) for _ in range(length)]
        everything += block
        add(pool, block)
    assert sorted(pool.images.flatten().tolist()) == sorted(everything[-capacity:])
    assert pool.images.flatten().tolist() == pool.labels.tolist()


@given(st.integers(1, 20), st.integers(1, 30))
def test_nothing_is_drawn_twice_before_everything_was_drawn_once(size, batch):
    pool = pool_of(list(range(size)))
    drawn = torch.cat([pool.draw(batch) for _ in range(4)]).flatten()
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size].tolist()) == list(range(size))


@given(st.integers(5, 12))
def test_a_share_comes_from_the_newest_round(capacity):
    pool = pool_of([1, 2, 3, 4], max_images=capacity)
    pool.start_round()
    add(pool, [101, 102])
    add(pool, [103])
    drawn = pool.draw(8, newest_fraction=0.75).flatten()
    assert (drawn[:6] > 100).all()
    assert sorted(drawn[:3].tolist()) == [101, 102, 103]


def test_without_a_newest_round_everything_is_drawn_from():
    pool = pool_of([1, 2])
    pool.start_round()
    assert sorted(pool.draw(2, newest_fraction=1.0).flatten().tolist()) == [1, 2]


@pytest.mark.parametrize("capacity", [None, 6])
def test_a_restored_pool_draws_the_same_batches(capacity, tmp_path):
    pool = pool_of(list(range(9)), capacity)
    pool.start_round()
    add(pool, [50, 51])
    pool.draw(5, 0.4)
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    other = ImagePool(SHAPE, make_rng(7, "another"), capacity)
    other.load_state_dict(torch.load(tmp_path / "pool.pt", weights_only=True))
    for _ in range(5):
        assert torch.equal(pool.draw(4, 0.5), other.draw(4, 0.5))
        add(pool, [7])
        add(other, [7])
