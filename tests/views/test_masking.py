# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib.randomness import generator, sample_keys, step_key
from recipes_lib.views.masking import (
    Blocks,
    block_mask,
    context_and_targets,
    keep_count,
    random_keep,
    random_mask,
)


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


# squares of patches


@pytest.mark.parametrize(
    ("grid", "unit", "ratio", "hidden"), [(6, 1, 0.6, 22), (14, 2, 0.6, 30 * 4), (14, 1, 0.75, 147)]
)
def test_the_units_of_the_card_are_hidden_rounded_up(grid, unit, ratio, hidden):
    mask = random_mask(sample_keys(0, 0, torch.arange(50)), grid, ratio, unit=unit)
    assert mask.shape == (50, grid**2)
    assert (mask.sum(dim=1) == hidden).all()
    squares = mask.view(50, grid // unit, unit, grid // unit, unit).float().mean(dim=(2, 4))
    assert ((squares == 0) | (squares == 1)).all()


def test_every_unit_is_hidden_equally_often_and_depends_on_its_image_alone():
    mask = random_mask(sample_keys(0, 0, torch.arange(20_000)), 4, 0.5)
    torch.testing.assert_close(mask.float().mean(dim=0), torch.full((16,), 0.5), atol=5 * 0.5 / 20_000**0.5, rtol=0)
    assert torch.equal(mask[[7, 3]], random_mask(sample_keys(0, 0, torch.tensor([7, 3])), 4, 0.5))


@pytest.mark.parametrize(
    ("grid", "ratio", "unit", "words"),
    [
        (14, 0.6, 4, "a mask unit of 4 patches does not tile a grid of 14 x 14"),
        (4, 0.9, 2, r"mask ratio 0\.9 keeps 0 of 4 patches"),
    ],
)
def test_units_that_do_not_fit_are_refused(grid, ratio, unit, words):
    with pytest.raises(ValueError, match=words):
        random_mask(torch.zeros(1, dtype=torch.int64), grid, ratio, unit=unit)


# blocks


@pytest.mark.parametrize(("grid", "count"), [(14, 75), (14, 195), (14, 1), (4, 6), (4, 15), (16, 102)])
def test_blocks_hide_exactly_the_count(grid, count):
    mask = block_mask(sample_keys(0, 0, torch.arange(300)), grid, count)
    assert (mask.sum(dim=1) == count).all()


def test_hidden_patches_lie_in_blocks_and_everywhere():
    mask = block_mask(sample_keys(0, 0, torch.arange(4000)), 14, 75).view(-1, 14, 14).float()
    assert (mask[:, 1:] * mask[:, :-1]).mean() > 0.3  # both of two neighbours; 0.146 if patches were independent
    often = mask.mean(dim=0)
    assert often.min() > 0.02  # a corner has one place of a block over it, the centre has many
    for mirrored in (often.flip(0), often.flip(1), often.T):
        torch.testing.assert_close(often, mirrored, atol=0.05, rtol=0)


def test_blocks_start_at_16_patches_and_are_up_to_3_times_as_high_as_wide_or_as_wide_as_high():
    mask = block_mask(sample_keys(0, 0, torch.arange(2000)), 14, 16).view(-1, 14, 14)  # one block, if rounding allows
    heights, widths = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
    single = heights * widths - 16 < widths  # a rectangle whose last row may be cut
    assert single.float().mean() > 0.6
    assert {4 * 4, 3 * 6} <= set((heights * widths)[single].tolist())
    ratios = heights[single] / widths[single]
    assert ratios.max() <= 9 / 2  # the aspect is at most 1 / 0.3, and sides are rounded
    assert ratios.max() > 2
    assert ratios.min() < 1 / 2


def test_a_block_mask_does_not_depend_on_the_batch_and_changes_with_the_epoch():
    mask = block_mask(sample_keys(3, 1, torch.tensor([5, 9, 2])), 14, 75)
    assert torch.equal(mask[2:], block_mask(sample_keys(3, 1, torch.tensor([2])), 14, 75))
    assert not torch.equal(mask, block_mask(sample_keys(3, 2, torch.tensor([5, 9, 2])), 14, 75))


@pytest.mark.parametrize("count", [0, 16])
def test_blocks_that_hide_nothing_or_everything_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} of 16 patches hidden; at least 1 must be hidden and 1 visible"):
        block_mask(torch.zeros(1, dtype=torch.int64), 4, count)


# context and targets


def drawn(images: int = 64, *, step: int = 0, grid: int = 14, first: int = 0, blocks: int = 4) -> Blocks:
    """The blocks of I-JEPA's paper."""
    keys = sample_keys(0, 0, torch.arange(first, first + images))
    scales = {"target_scale": (0.15, 0.2), "target_aspect": (0.75, 1.5), "context_scale": (0.85, 1.0)}
    return context_and_targets(keys, step_key(0, step, "blocks"), grid, blocks=blocks, **scales)


@pytest.mark.parametrize("step", range(5))
def test_targets_are_blocks_and_no_patch_of_the_context_is_in_one(step):
    context, targets = drawn(step=step)
    size = targets.shape[2]
    assert context.shape[1] == 196 - 4 * size
    for image in range(64):
        for block in targets[image]:
            rows, columns = (block // 14).unique(), (block % 14).unique()
            assert len(rows) * len(columns) == size
            assert rows[-1] - rows[0] + 1 == len(rows)
            assert columns[-1] - columns[0] + 1 == len(columns)
        assert len(context[image].unique()) == context.shape[1]
        assert not torch.isin(context[image], targets[image].flatten()).any()


def test_sizes_of_blocks_follow_the_step_and_stay_in_their_ranges():
    sides = set()
    for step in range(300):
        block = drawn(1, step=step).targets[0, 0]
        sides.add((len((block // 14).unique()), len((block % 14).unique())))
    assert len(sides) > 4
    assert all(0.15 * 196 - 5 <= h * w <= 0.2 * 196 + 5 for h, w in sides)  # a side is rounded by up to half a patch
    assert all(0.6 < h / w < 1.8 for h, w in sides)
    assert max(h * w for h, w in sides) <= 42  # 7 x 6


def test_places_depend_on_the_image_alone_not_on_the_batch():
    many, few = drawn(), drawn(3, first=40)
    assert torch.equal(many.context[40:43], few.context)
    assert torch.equal(many.targets[40:43], few.targets)


def test_all_rows_and_columns_are_context_and_target_also_the_last():
    found = [drawn(200, step=step) for step in range(20)]
    for which in ("context", "targets"):
        counts = torch.bincount(torch.cat([getattr(each, which).flatten() for each in found]), minlength=196)
        assert counts.min() > 50  # of 4,000 images


def test_patches_outside_of_the_context_block_are_used_only_if_those_inside_are_too_few():
    keys = sample_keys(0, 0, torch.arange(500))
    scales = {"target_scale": (0.15, 0.2), "target_aspect": (1.0, 1.0), "context_scale": (0.5, 0.5)}
    context, targets = context_and_targets(keys, 1, 14, blocks=1, **scales)  # 196 - 36 patches of 10 x 10 = 100 at most
    assert context.shape[1] == 196 - targets.shape[2]
    inside = context[:, : 100 - targets.shape[2]]  # the first ones always fit into the block
    assert ((inside // 14).amax(dim=1) - (inside // 14).amin(dim=1)).max() <= 9
    assert ((context // 14).amax(dim=1) - (context // 14).amin(dim=1)).min() == 13


def test_blocks_that_may_cover_the_image_are_refused():
    with pytest.raises(ValueError, match="4 target blocks of up to 4 patches may cover all 16 patches"):
        drawn(grid=4)
