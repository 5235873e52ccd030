# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from recipes_lib.errors import ConfigError
from recipes_lib.models.nac.tokens import BYTES, ImageTokens, PairTokens, PointTokens, SequenceTokens, TextEncoder


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_patches_are_tokens_row_by_row_with_their_positions():
    torch.manual_seed(0)
    made, images = ImageTokens(8, 4, 5, stem="patch", position_width=3), draw(2, 3, 8, 8)
    tokens, hidden = made(images)
    assert hidden is None
    assert tuple(tokens.shape) == (2, 4, made.width) == (2, 4, 8)
    kernel = made.stem.weight.flatten(1)
    second = images[:, :, :4, 4:].flatten(1) @ kernel.T + made.stem.bias  # the patch at the upper right
    torch.testing.assert_close(tokens[:, 1, :5], second)
    torch.testing.assert_close(tokens[:, 2, 5:], made.positions[0, :, 1, 0].expand(2, -1))


def test_the_conv_stem_has_the_same_grid_and_sees_beyond_a_patch():
    torch.manual_seed(0)
    made, images = ImageTokens(64, 8, 16, stem="conv", position_width=4), draw(1, 3, 64, 64)
    tokens = made(images).values
    assert tuple(tokens.shape) == (1, 64, 20)
    other = images.clone()
    other[:, :, :8, :8] += 1
    for block in made.stem:
        if hasattr(block, "gamma"):
            block.gamma.data.fill_(1.0)
    moved = (made(other).values - made(images).values).abs().amax(-1)[0] > 0
    assert moved[0]
    assert 1 < moved.sum() < 64  # a 7x7 convolution of a map at a quarter of the grid's stride


def test_positions_are_resized_for_images_of_another_size():
    made = ImageTokens(8, 4, 5, stem="patch", position_width=3)
    assert tuple(made(draw(1, 3, 16, 16)).values.shape) == (1, 16, 8)
    made.positions.data.fill_(0.5)
    assert (made(draw(1, 3, 16, 16)).values[..., 5:] - 0.5).abs().max() < 1e-6


def test_a_point_is_a_token_that_does_not_know_its_number():
    torch.manual_seed(0)
    made, points = PointTokens(8), draw(2, 6, 3)
    tokens = made(points).values
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    torch.testing.assert_close(made(points[:, order]).values, tokens[:, order])
    assert tuple(tokens.shape) == (2, 6, 8)
    x = torch.cat([points, torch.zeros(2, 6, 24)], -1)
    for axis in range(3):
        for band in range(4):
            x[..., 3 + 4 * axis + band] = (torch.pi * 2**band * points[..., axis]).sin()
            x[..., 15 + 4 * axis + band] = (torch.pi * 2**band * points[..., axis]).cos()
    torch.testing.assert_close(tokens, made.embed(x), rtol=1e-4, atol=1e-5)


def test_a_sequence_is_embedded_with_its_places_and_its_end_is_hidden():
    torch.manual_seed(0)
    made = SequenceTokens(BYTES, 6, 4)
    ids = torch.tensor([[65, 66, 256, 256], [67, 68, 69, 70]])
    tokens, hidden = made(ids)
    assert hidden.tolist() == [[False, False, True, True], [False] * 4]
    torch.testing.assert_close(tokens[1, 2], made.embed.weight[69] + made.positions[2])


def test_a_pair_is_one_set_of_tokens_that_know_their_side():
    torch.manual_seed(0)
    one = ImageTokens(8, 4, 5, stem="patch", position_width=3)
    made, pairs = PairTokens(one), draw(2, 2, 3, 8, 8)
    tokens = made(pairs).values
    assert tuple(tokens.shape) == (2, 8, made.width) == (2, 8, 8)
    torch.testing.assert_close(tokens[:, :4], one(pairs[:, 0]).values + made.sides[0])
    torch.testing.assert_close(tokens[:, 4:], one(pairs[:, 1]).values + made.sides[1])
    assert (made.sides[0] - made.sides[1]).abs().max() > 0.1


def test_a_text_is_encoded_without_what_follows_its_end():
    torch.manual_seed(0)
    made = TextEncoder(BYTES, 8, 12, depth=2, heads=3).eval()
    ids = torch.tensor([[65, 66, 67, 256, 256], [70, 71, 72, 73, 74]])
    values, hidden = made(ids)
    assert hidden.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    torch.testing.assert_close(values[0, :3], made(ids[:1, :3]).values[0], rtol=1e-4, atol=1e-5)
    assert (values[1] - made(ids.flip(1)).values[1].flip(0)).abs().max() > 1e-3  # places matter
    made.train()
    made(ids).values[~hidden].sum().backward()
    assert all(p.grad is not None for p in made.parameters())


# bad input


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"model.patch_size = 3 does not divide a view of 8x8 pixels"):
        ImageTokens(8, 3, 8, stem="patch")
    with pytest.raises(ConfigError, match=r"patch_size 2 and width 8 must be multiples of 4. Use --model.stem patch"):
        ImageTokens(8, 2, 8, stem="conv")
    with pytest.raises(ValueError, match=r"images have shape \[1, 3, 8, 4\]; square ones"):
        ImageTokens(8, 4, 8, stem="patch")(draw(1, 3, 8, 4))


def test_points_and_sequences_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"points have shape \[2, 3, 5\]; \[B, N, 3\] is wanted"):
        PointTokens(8)(draw(2, 3, 5))
    with pytest.raises(ValueError, match="2 coordinates of the points are not finite"):
        PointTokens(8)(torch.tensor([[[0, torch.nan, torch.inf]]]))
    with pytest.raises(ValueError, match=r"pairs have shape \[2, 3, 8, 8\]; \[B, 2, channels, side, side\] is wanted"):
        PairTokens(ImageTokens(8, 4, 8, stem="patch"))(draw(2, 3, 8, 8))
    made = SequenceTokens(16, 4, 8)
    with pytest.raises(
        ValueError, match=r"ids have shape \[1, 5\]; this network has positions for \[B, 4\] or shorter"
    ):
        made(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids go from -1 to 17; allowed are 0 to 15, and 16 after the end"):
        made(torch.tensor([[-1, 17]]))
    with pytest.raises(ValueError, match="sequence 1 has no token"):
        made(torch.tensor([[1, 16], [16, 16]]))
