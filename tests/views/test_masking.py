# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib.randomness import generator, sample_keys
from recipes_lib.views.masking import keep_count, random_keep


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    [(196, 0.15, 166), (196, 0.3, 137), (196, 0.7, 58), (3136, 0.7, 940), (100, 0.9, 9), (36, 0.0, 36)],
)
def test_keep_counts_of_the_card_g8(patches, ratio, kept):
    assert keep_count(patches, ratio) == kept


@given(patches=st.integers(1, 4000), ratio=st.floats(0, 0.999))
def test_a_count_is_between_1_and_all_or_refused(patches, ratio):
    if int(patches * (1 - ratio)) == 0:
        with pytest.raises(ValueError, match=f"keeps 0 of {patches} patches"):
            keep_count(patches, ratio)
    else:
        assert 1 <= keep_count(patches, ratio) <= patches


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"mask ratio {ratio} is not allowed: use a value in \[0, 1\)"):
        keep_count(196, ratio)


def test_every_patch_is_kept_equally_often_the_last_one_too():
    kept = random_keep(49, 0.7, keys=sample_keys(0, 0, torch.arange(20_000)))
    share = torch.bincount(kept.flatten(), minlength=49) / len(kept)  # 14 of 49 are kept
    assert kept.shape == (20_000, 14)
    torch.testing.assert_close(share, torch.full((49,), 14 / 49), atol=5 * (0.2857 * 0.7143 / 20_000) ** 0.5, rtol=0)


def test_a_shared_mask_keeps_every_patch_equally_often():
    g = generator(0, 0, "mask")
    draws = torch.cat([random_keep(16, 0.5, generator=g) for _ in range(5000)])
    share = torch.bincount(draws, minlength=16) / 5000
    torch.testing.assert_close(share, torch.full((16,), 0.5), atol=5 * (0.25 / 5000) ** 0.5, rtol=0)


def test_kept_patches_are_distinct():
    for kept in random_keep(36, 0.5, keys=sample_keys(0, 0, torch.arange(50))):
        assert len(kept.unique()) == 18


def test_a_sample_has_its_mask_whatever_the_batch_and_another_in_the_next_epoch():
    mask = random_keep(49, 0.5, keys=sample_keys(3, 1, torch.tensor([5, 9, 2])))
    again = random_keep(49, 0.5, keys=sample_keys(3, 1, torch.tensor([2, 7])))
    assert torch.equal(mask[2], again[0])
    assert not torch.equal(mask, random_keep(49, 0.5, keys=sample_keys(3, 2, torch.tensor([5, 9, 2]))))
    assert not torch.equal(mask[0], mask[1])


def test_a_shared_mask_follows_its_generator():
    assert torch.equal(
        random_keep(49, 0.5, generator=generator(0, 7, "mask")), random_keep(49, 0.5, generator=generator(0, 7, "mask"))
    )


def test_keys_and_generator_exclude_each_other():
    with pytest.raises(ValueError, match="either keys"):
        random_keep(49, 0.5)
    with pytest.raises(ValueError, match="either keys"):
        random_keep(49, 0.5, keys=torch.zeros(1, dtype=torch.int64), generator=torch.Generator())
