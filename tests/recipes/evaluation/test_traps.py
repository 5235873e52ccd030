# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data.images import ImageSet
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.models.convnet import ConvNet
from recipes_lib.recipes.evaluation import traps
from recipes_lib.recipes.families.settings import FamiliesViews


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_k_nn_by_cosine_is_the_shared_rooms(seed):
    train, test = rows(60, 5, seed=seed), rows(40, 5, seed=seed + 9)
    labels, wanted = (torch.arange(n) * 7 % 4 for n in (60, 40))
    cosine = traps.similarities(train, test)["cosine"]
    found = traps.right(cosine, labels, wanted, k=7, temperature=0.1).double().mean()
    assert float(found) == weighted_knn(train, labels, test, wanted, k=7, temperature=0.1)


def test_a_long_feature_wins_by_the_inner_product_and_a_near_one_by_distance():
    train = torch.tensor([[1.0, 0.1], [4.0, 4.0]])  # a short one in the right direction, a long one at 45 degrees
    found = traps.similarities(train, torch.tensor([[1.0, 0.0]]))
    assert found["cosine"].argmax() == found["distance"].argmax() == 0
    assert found["product"].argmax() == 1


def test_for_features_of_equal_length_the_three_ways_differ_by_a_constant_alone():
    train, test = (torch.nn.functional.normalize(rows(n, 6, seed=n), dim=1) * 3 for n in (20, 5))
    found = traps.similarities(train, test)
    torch.testing.assert_close(found["product"], found["cosine"])
    torch.testing.assert_close(found["distance"], found["cosine"] - 1)


def test_noise_has_nearly_full_rank_and_is_nearly_uniform():
    found = traps.of_noise(4096, 64, seed=0)
    assert found["rankme"] > 63
    assert found["uniformity"] < -3.5
    assert abs(found["std"] - 1) < 0.01
    assert found["alpha_req"] < 0.3


def test_the_best_of_settings_that_are_all_guesses_seems_good_and_is_not():
    guess = torch.rand(50, 1000, generator=torch.Generator().manual_seed(0)) < 0.5
    held = torch.rand(50, 300, generator=torch.Generator().manual_seed(1)) < 0.5
    found = traps.optimism(guess, held, size=100, draws=100, seed=0)
    # the largest of 50 means of 100 coins: 0.05 x 2.25 above one half
    assert found["on_test"] == pytest.approx(0.112, abs=0.02)
    assert abs(found["held_out"]) < 0.02
    larger = traps.optimism(guess, held, size=300, draws=100, seed=0)
    assert larger["on_test"] < found["on_test"]


def test_one_setting_leaves_nothing_to_choose():
    right = torch.rand(1, 400, generator=torch.Generator().manual_seed(0)) < 0.7
    found = traps.optimism(right, right, size=50, draws=50, seed=0)
    assert found["on_test"] == found["held_out"]


@pytest.mark.parametrize("size", [0, 400, 101])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=f"size = {size}; use at least 1, less than 400 test and at most 100 held-out"):
        traps.optimism(torch.ones(2, 400, dtype=bool), torch.ones(2, 100, dtype=bool), size=size, seed=0)


def test_there_is_an_answer_for_each_treatment_and_setting_and_the_first_treatment_is_none():
    train, test = rows(250, 4) + 5, rows(30, 4, seed=1) + 5
    labels, wanted = (torch.arange(n) % 3 for n in (250, 30))
    found = traps.answers(train, labels, test, wanted)
    assert found.shape == (3 * len(traps.SETTINGS), 30)
    k, temperature = traps.SETTINGS[9]
    accuracy = weighted_knn(train, labels, test, wanted, k=k, temperature=temperature)
    assert float(found[9].double().mean()) == accuracy
    middle = train.mean(dim=0)
    centred = weighted_knn(train - middle, labels, test - middle, wanted, k=k, temperature=temperature)
    assert float(found[len(traps.SETTINGS) + 9].double().mean()) == centred


def test_the_evaluation_view_at_its_own_side_is_that_of_extraction_and_another_side_is_not():
    network = ConvNet()
    images = ImageSet(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), None, ())
    how = {"normalize": "imagenet", "resize": "bilinear"}
    usual = extract(network, images, image_size=32, **how).final
    torch.testing.assert_close(traps.see_at(network, images, 32, **how), usual)
    assert not torch.allclose(traps.see_at(network, images, 48, **how), usual)
    assert network.training


def test_augmented_features_are_those_of_one_random_view_and_depend_on_the_seed():
    network = ConvNet()
    images = ImageSet(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), None, ())
    views = FamiliesViews(image_size=32, global_views=0, blur=0.0)
    first, again, other = (traps.see_augmented(network, images, views, seed) for seed in (0, 0, 1))
    assert first.shape == (6, 128)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
