# SPDX-License-Identifier: Apache-2.0
"""Parity with lightly's ``patchify``, ``normalize_mean_var`` and ``random_token_mask``: the parts of its MAE."""

import pytest
import torch
import torch.nn.functional as F

from recipes_lib.objectives.masked import mae_loss, normalise_patches, patchify
from recipes_lib.views.masking import keep_count

utils = pytest.importorskip("lightly.models.utils", reason="lightly is not installed")

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_patches_have_lightlys_order():
    assert torch.equal(patchify(IMAGES, 4), utils.patchify(IMAGES, 4))


def test_patches_are_normalised_as_lightlys_are():
    patches = patchify(IMAGES, 4)
    torch.testing.assert_close(normalise_patches(patches), utils.normalize_mean_var(patches), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("patches", "ratio"), [(196, 0.75), (64, 0.75), (16, 0.75), (196, 0.6)])
def test_as_many_patches_are_kept(patches, ratio):
    kept, hidden = utils.random_token_mask((1, 1 + patches), mask_ratio=ratio)  # its sequence has a class token
    assert kept.shape[1] - 1 == keep_count(patches, ratio)
    assert hidden.shape[1] == patches - keep_count(patches, ratio)


def test_the_loss_and_its_gradient_are_those_of_lightlys_mae():
    hidden = torch.tensor([[3, 0, 7], [1, 2, 15], [9, 8, 4]])
    guess = torch.randn(3, 3, 48, dtype=torch.float64, requires_grad=True)
    target = utils.get_at_index(utils.patchify(IMAGES, 4), hidden)
    theirs = F.mse_loss(guess, utils.normalize_mean_var(target))  # as its example of MAE has it
    ours = mae_loss(guess, target)["loss"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for mine, his in zip(torch.autograd.grad(ours, guess), torch.autograd.grad(theirs, guess), strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-12)
