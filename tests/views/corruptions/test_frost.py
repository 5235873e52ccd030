# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.randomness import sample_keys
from recipes_lib.views.corruptions.frost import frost, texture

KEYS = sample_keys(0, 0, torch.arange(40))


def test_panes_have_the_colours_and_the_spread_of_the_photographs():
    panes = 255 * texture(KEYS, "frost", 96, 96, 1.0)
    kinds = panes.mean(dim=(2, 3)).div(12).round().unique(dim=0)
    assert 4 <= len(kinds) <= 6  # four different photographs; clipping at white moves some means
    assert abs(panes.mean() - 163) < 15
    spreads = panes.mean(dim=1).std(dim=(1, 2))
    assert spreads.min() > 12
    assert spreads.max() < 45


def test_no_two_panes_are_alike_and_the_same_key_gives_the_same_pane():
    panes = texture(KEYS[:3], "frost", 48, 64, 0.3)
    assert panes.shape == (3, 3, 48, 64)
    assert torch.equal(panes[1:2], texture(KEYS[1:2], "frost", 48, 64, 0.3))
    assert not torch.allclose(panes[0], panes[1], atol=0.05)


def test_frost_is_the_weighted_sum_of_image_and_pane():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pane = texture(KEYS[:3], "frost", 32, 32, 0.2)
    torch.testing.assert_close(frost(images, KEYS[:3], "frost", (0.75, 0.45), 0.2), 0.75 * images + 0.45 * pane)
