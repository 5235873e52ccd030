# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sklearn.linear_model import Ridge

from recipes_lib.data.images import ImageSet
from recipes_lib.evaluation import dense
from recipes_lib.models import convit, vit
from recipes_lib.models.convnet import ConvNet


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_cell_has_the_class_that_covers_most_of_it_and_the_lower_one_of_equal_ones():
    mask = torch.tensor([[2, 2, 0, 0], [2, 1, 0, 3], [1, 1, 3, 3], [0, 0, 3, 0]])
    # upper left: three 2 and one 1; upper right: three 0; lower left: two 1 and two 0; lower right: three 3
    assert dense.token_labels(mask[None], 2).tolist() == [[2, 0, 0, 3]]
    assert torch.equal(dense.token_labels(mask[None], 4), mask.flatten()[None])
    assert dense.token_labels(mask[None], 1).tolist() == [[0]]


@pytest.mark.parametrize(("shape", "grid"), [((1, 4, 4), 3), ((1, 4, 4), 0), ((1, 4, 6), 2), ((4, 4), 2)])
def test_a_grid_that_does_not_fit_is_refused(shape, grid):
    with pytest.raises(ValueError, match=f"have no {grid}x{grid} cells"):
        dense.token_labels(torch.zeros(shape, dtype=torch.int64), grid)


def test_mean_iou_by_hand_counts_the_classes_that_the_labels_have():
    labels, guesses = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 3, 0])
    # 0: 2 of 4; 1: 1 of 3; 2: 0 of 2; 3 is no class of the labels
    assert dense.mean_iou(guesses, labels) == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)
    assert dense.mean_iou(labels, labels) == 1.0


def test_the_ridge_is_scikit_learns_with_the_same_weights():
    known, asked = rows(200, 5).double(), rows(3000, 5, seed=1).double()
    labels = (known[:, 0] > 0.8).long() + (known[:, 1] > 1.2).long()
    weights = labels.bincount()[labels].double().rsqrt()
    wanted = torch.nn.functional.one_hot(labels, 3).double()
    peer = Ridge(alpha=0.01 * float(weights.sum())).fit(known, wanted, sample_weight=weights)
    theirs = torch.from_numpy(peer.predict(asked)).argmax(dim=1)
    assert torch.equal(dense._ridge(known, labels, asked, 3, 0.01), theirs)


def test_a_rare_class_is_found_although_another_has_most_of_the_tokens():
    labels = (torch.rand(300, 4, generator=torch.Generator().manual_seed(2)) < 0.05).long()
    tokens = labels[..., None] + 0.6 * rows(300, 4, 1)
    score = dense.dense_probe(tokens[:200], labels[:200], tokens[200:], labels[200:], seed=0)
    assert score.mean_iou > 0.55  # without weights the intercept wins, and it is 0.5
    assert 0.9 < score.accuracy < 1


def test_labels_that_a_linear_map_of_the_tokens_gives_are_found_exactly_and_shuffled_ones_are_not():
    tokens = rows(60, 9, 6)
    labels = (tokens[..., 0] > 0).long()
    score = dense.dense_probe(tokens[:40], labels[:40], tokens[40:], labels[40:], seed=0)
    assert score.accuracy > 0.95
    assert score.penalty in dense.PENALTIES
    shuffled = labels.flatten()[torch.randperm(60 * 9, generator=torch.Generator().manual_seed(1))].view(60, 9)
    assert dense.dense_probe(tokens[:40], shuffled[:40], tokens[40:], shuffled[40:], seed=0).accuracy < 0.65


def test_the_scale_of_a_dimension_does_not_matter_and_a_constant_one_does_no_harm():
    tokens = rows(40, 4, 3)
    labels = (tokens[..., 0] > 0.3).long()
    scaled = torch.cat([tokens * torch.tensor([1.0, 100.0, 0.01]), torch.full((40, 4, 1), 7.0)], dim=2)
    scores = [dense.dense_probe(x[:30], labels[:30], x[30:], labels[30:], seed=0) for x in (tokens, scaled)]
    assert scores[0] == scores[1]


def test_the_penalty_is_chosen_without_the_test_images():
    tokens, labels = rows(40, 4, 30), (rows(40, 4, seed=3) > 0).long()
    first, other = (
        dense.dense_probe(tokens, labels, x, labels, seed=0).penalty for x in (tokens, rows(40, 4, 30, seed=9))
    )
    assert first == other


@pytest.mark.parametrize(
    ("tokens", "labels", "how", "text"),
    [
        (rows(10, 4, 3), torch.zeros(10, 5, dtype=torch.int64), {}, r"got \[10, 4, 3\], \[10, 5\]"),
        (rows(10, 3), torch.zeros(10, dtype=torch.int64), {}, r"tokens \[N, T, D\]"),
        (rows(10, 4, 3), torch.zeros(10, 4, dtype=torch.int64), {"penalties": ()}, "0 penalties"),
        (rows(4, 4, 3), torch.zeros(4, 4, dtype=torch.int64), {}, "4 training images"),
    ],
)
def test_shapes_that_do_not_fit_and_too_few_images_are_refused(tokens, labels, how, text):
    with pytest.raises(ValueError, match=text):
        dense.dense_probe(tokens, labels, tokens, labels, seed=0, **how)


def test_tokens_of_a_transformer_are_its_patches_without_class_token_and_registers():
    network = vit.build(vit.ViTConfig(arch="vit_pico", stem="patch", patch_size=8, registers=2), image_size=32).eval()
    images = rows(2, 3, 32, 32)
    assert torch.equal(dense.tokens(network, images), network.tokens(images)[:, 3:])
    assert dense.tokens(network, images).shape == (2, 16, network.num_features)


def test_tokens_of_a_convolutional_network_are_the_positions_whose_mean_are_its_features():
    network, images = ConvNet().eval(), rows(2, 3, 64, 64)
    found = dense.tokens(network, images)
    assert found.shape == (2, 16, 128)
    torch.testing.assert_close(found.mean(dim=1), network(images))
    assert torch.equal(found[:, 1], network.layers(images)[:, :, 0, 1])  # row by row


def test_extraction_sees_the_evaluation_view_and_leaves_the_networks_mode_alone():
    network = ConvNet().train()
    images = ImageSet(torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8), None, ())
    found = dense.extract_tokens(network, images, image_size=32, normalize="imagenet")
    assert found.shape == (5, 4, 128)
    assert network.training
    alone = dense.extract_tokens(network, images.select(torch.tensor([3])), image_size=32, normalize="imagenet")
    torch.testing.assert_close(found[3], alone[0])  # batch norms use their statistics, not the batch's


def test_the_tokens_of_a_convit_are_its_patches_without_the_class_token():
    network = convit.build(convit.ConViTConfig(arch="convit_pico", patch_size=8), image_size=16).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(dense.tokens(network, images), network.tokens(images)[:, 1:])
