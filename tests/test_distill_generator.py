"""The generator: sizes published with NAYER and CMI, noisy layers, labels, embeddings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stars_deploy.distillation.randomness import make_rng
from stars_deploy.distillation.synthesis.generator import (
    NayerGenerator,
    NoisyLayers,
    Trunk,
    balanced_labels,
    label_embeddings,
)
from stars_deploy.errors import InputError


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("shape", "parameters"), [((3, 32, 32), 2_328_899), ((1, 28, 28), 1_834_305)]
)
def test_trunk_on_a_latent_of_256_has_the_size_of_the_cmi_generator(shape, parameters):
    with torch.device("meta"):
        assert size(Trunk(256, 64, shape)) == parameters


@pytest.mark.parametrize(
    ("batch", "classes", "shape", "parameters"),
    [
        (400, 10, (3, 32, 32), 28_944_771),
        (400, 100, (3, 32, 32), 10_476_771),
        (200, 200, (3, 64, 64), 33_538_347),
    ],
)
def test_nayer_generator_has_its_published_size(batch, classes, shape, parameters):
    with torch.device("meta"):
        assert size(NayerGenerator(batch, classes, shape)) == parameters


def test_noisy_layer_i_sees_rows_of_block_i_only():
    rng = make_rng(0, "test")
    layers = NoisyLayers(batch_size=7, classes=3, inputs=4, outputs=5)
    layers.reset(rng)
    rows = torch.randn(7, 4, generator=rng)
    before = layers(rows)
    assert before.shape == (7, 5) and len(layers.weight) == 3
    by_hand = rows[3:6] @ layers.weight[1] + layers.bias[1]
    torch.testing.assert_close(before[3:6], by_hand)
    with torch.no_grad():
        layers.weight[1] += 1
    changed = (layers(rows) != before).any(dim=1)
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False]


def test_reset_draws_standard_normal_weights_and_zero_biases():
    layers = NoisyLayers(20, 10, 64, 200)
    with torch.no_grad():
        layers.bias.fill_(1)
    layers.reset(make_rng(0, "test"))
    assert float(layers.weight.detach().std()) == pytest.approx(1, abs=0.02)
    assert float(layers.weight.detach().mean()) == pytest.approx(0, abs=0.02)
    assert not layers.bias.any()


def test_images_are_in_the_open_unit_interval():
    generator = NayerGenerator(6, 3, (2, 8, 12), lte_dim=4, le_emb=8, ngf=4)
    generator.noisy.reset(make_rng(0, "test"))
    rows = label_embeddings("orthogonal", 3, 4, make_rng(0, "x"))
    images = generator(rows[torch.arange(6) % 3]).detach()
    assert images.shape == (6, 2, 8, 12)
    assert float(images.min()) > 0 and float(images.max()) < 1


def test_a_size_that_cannot_be_upsampled_is_refused():
    with pytest.raises(InputError, match="28x30"):
        Trunk(4, 4, (1, 28, 30))


def test_labels_come_in_blocks_with_the_remainder_last():
    labels = balanced_labels(11, 4, make_rng(0, "labels"))
    assert labels[:8].tolist() == [0, 1, 2, 3] * 2
    assert len(labels) == 11 and int(labels.max()) < 4
    counts = torch.bincount(balanced_labels(400, 10, make_rng(0, "labels")))
    assert counts.tolist() == [40] * 10


def test_label_embeddings():
    rng = make_rng(0, "embeddings")
    rows = label_embeddings("orthogonal", 10, 64, rng)
    torch.testing.assert_close(rows @ rows.T, 64 * torch.eye(10), atol=1e-4, rtol=0)
    assert label_embeddings("onehot", 3, 5, rng).tolist() == torch.eye(3, 5).tolist()
    assert label_embeddings("random", 3, 2, rng).shape == (3, 2)
    with pytest.raises(InputError, match="lte_dim is 5, but 10"):
        label_embeddings("orthogonal", 10, 5, rng)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 1000))
def test_class_counts_differ_by_the_remainder_at_most(batch, classes, seed):
    counts = torch.bincount(
        balanced_labels(batch, classes, make_rng(seed, "labels")), minlength=classes
    )
    assert int(counts.sum()) == batch and len(counts) == classes
    assert int(counts.min()) >= batch // classes
    assert int(counts.max() - counts.min()) <= batch % classes


def test_a_reset_changes_the_noisy_layers_only():
    generator = NayerGenerator(6, 3, (1, 8, 8), lte_dim=4, le_emb=8, ngf=4)
    generator.noisy.reset(make_rng(0, "first"))
    with torch.no_grad():
        generator.noisy.bias.fill_(1)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.noisy.reset(make_rng(0, "second"))
    after = generator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"noisy.weight", "noisy.bias"}
