# SPDX-License-Identifier: Apache-2.0
"""Nets for Pantry-X: what they are shown, and where they start."""

import pytest
import torch

from recipes_lib.data.loader import Batch
from recipes_lib.recipes.imagenet_x import pantry_nets, pantry_x
from recipes_lib.recipes.imagenet_x.pantry_nets import AUGMENTATIONS, PLAIN, TOUCHES
from recipes_lib.views.multicrop import MultiCrop, eval_view


def test_what_is_touched_is_written_down_for_every_augmentation():
    assert set(TOUCHES) == set(AUGMENTATIONS) - {"plain"}
    assert {name for own in TOUCHES.values() for name in own} <= set(pantry_x.FACTORS)


@pytest.mark.parametrize("teach", [pantry_nets.with_labels, pantry_nets.with_captions])
def test_nets_of_a_seed_learn_alike_and_leave_the_global_state_alone(teach):
    images = pantry_x.image_set(256, 0, "train", {})
    state = torch.random.get_rng_state()
    weights = [torch.cat([p.flatten() for p in teach(images, PLAIN, seed, 1).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_plain_view_is_the_whole_picture_mirrored_or_not():
    images = pantry_x.image_set(16, 0, "train", {}).images
    (view,) = MultiCrop(PLAIN, 0)(Batch(torch.arange(16), 0, images, None, None))
    whole = eval_view(images, pantry_x.SIZE)
    same = [(torch.allclose(view[i], whole[i], atol=1e-5), torch.allclose(view[i], whole[i].flip(-1), atol=1e-5)) for i in range(16)]  # fmt: skip
    assert all(a or b for a, b in same)
    assert {pair for pair in same} == {(True, False), (False, True)}


def test_a_clip_looks_through_the_augmentation_that_it_is_given():
    seen = pantry_nets.untrained_clip(AUGMENTATIONS["crop"], 0).config.views
    assert (seen.global_scale, seen.jitter, seen.blur) == ((0.2, 1.0), 0.0, 0.0)
    assert pantry_nets.untrained_clip(AUGMENTATIONS["jitter"], 0).config.views.hue == 0.2


def test_captions_are_true_and_alike_for_a_seed():
    images = pantry_x.image_set(64, 3, "train", {})
    pairs = pantry_nets.captioned(images, 3)
    assert pairs.texts == pantry_nets.captioned(images, 3).texts
    assert all(
        images.class_names[label] in text for label, text in zip(images.labels.tolist(), pairs.texts, strict=True)
    )
    assert len(set(pairs.uids)) == 64


def test_the_cooked_msn_finds_more_than_an_untrained_net(tmp_path):
    train, asked = (pantry_x.image_set(600, 5, split, {}) for split in ("train", "test"))
    found = pantry_nets.named_by_neighbours(pantry_nets.cooked_msn(), train, asked, tmp_path / "bank.safetensors")
    assert (found == asked.labels.numpy()).mean() > 0.4  # raw chance 0.08
