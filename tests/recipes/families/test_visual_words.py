# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.recipes.families.visual_words import k_means, nearest


def test_well_separated_clusters_are_found_from_any_start():
    g = torch.Generator().manual_seed(0)
    truth = 10 * torch.eye(3)
    patches = (truth[torch.arange(300) % 3] + torch.randn(300, 3, generator=g)).float()
    found = 0
    for seed in range(5):
        centres = k_means(patches, 3, torch.Generator().manual_seed(seed))
        found += bool((torch.cdist(truth, centres).amin(dim=1) < 0.5).all())
    assert found >= 3  # two starts in one cluster may stay there


def test_each_centre_is_the_mean_of_its_patches():
    patches = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    centres = k_means(patches, 2, torch.Generator().manual_seed(2))
    words = nearest(patches, centres)
    for word in range(2):
        torch.testing.assert_close(centres[word], patches[words == word].mean(dim=0), rtol=0, atol=0.05)


def test_nearest_is_the_smallest_euclidean_distance():
    patches, centres = torch.randn(2, 7, 5), torch.randn(4, 5)
    assert torch.equal(nearest(patches, centres), torch.cdist(patches, centres.expand(2, -1, -1)).argmin(dim=2))


def test_a_centre_without_patches_stays_where_it_is():
    patches = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    centres = k_means(patches, 3, torch.Generator().manual_seed(0))
    assert centres.isfinite().all()


def test_more_words_than_patches_are_refused():
    with pytest.raises(ValueError, match="2 patches cannot make 3 visual words"):
        k_means(torch.zeros(2, 4), 3, torch.Generator())
