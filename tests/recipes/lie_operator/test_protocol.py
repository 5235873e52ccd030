# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data.posed import PantryObjects, PoseCounts, draw
from recipes_lib.recipes.lie_operator import protocol
from recipes_lib.recipes.lie_operator.protocol import Embedded

ANGLES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


def turned(rows, angles):
    """Rows [n, 2 m], each plane of which turns by angles [n]: the same motion for every instance."""
    cosine, sine = angles[:, None].cos(), angles[:, None].sin()
    x, y = rows[:, 0::2], rows[:, 1::2]
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=2).flatten(1)


def infer(start, end):
    """The exact angle between rows, [n, 1]."""
    cross = start[:, 0::2] * end[:, 1::2] - start[:, 1::2] * end[:, 0::2]
    return torch.atan2(cross.sum(dim=1), (start * end).sum(dim=1))[:, None]


def move(rows, t):
    return turned(rows, t[:, 0])


def embedded(still=False):
    """Eight diverse, eight typical and eight unknown instances, whose embeddings turn with the pose (or do not)."""
    base = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    poses = torch.stack([base if still else turned(base, a.expand(24)) for a in ANGLES], dim=1)  # [24, 6, 6]
    typical = poses[8:16, :1].expand(-1, 6, -1)
    return Embedded(torch.cat([poses[:8], typical]), 8, poses[8:16, 1:], poses[16:])


def test_motions_go_from_the_canonical_to_every_other_pose_of_the_diverse_instances():
    found = protocol.motions(embedded(), infer)
    torch.testing.assert_close(found.view(8, 5), ANGLES[1:].expand(8, 5), atol=1e-5, rtol=1e-5)


def test_copies_are_moved_by_drawn_coefficients():
    rows, t = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([[0.3], [0.9]])
    found = protocol.moved(rows, t, move, copies=4, seed=0)
    assert found.shape == (5, 4, 6)
    options = torch.stack([turned(rows, angle.expand(5)) for angle in t[:, 0]])  # [2, 5, 6]
    distance = (found[None] - options[:, :, None]).abs().amax(dim=3)  # [2, 5, 4]
    assert distance.amin(dim=0).max() < 1e-6
    assert (distance < 1e-6).any(dim=(1, 2)).all()
    assert torch.equal(found, protocol.moved(rows, t, move, copies=4, seed=0))


def test_the_true_operator_lifts_both_accuracies_above_doing_nothing():
    found = embedded()
    t = protocol.motions(found, infer)
    for measure in (protocol.new_poses, protocol.unknown):
        assert measure(found, t, move, seed=0) > measure(found, None, None, seed=0) + 0.2


def test_motions_of_0_are_no_operator():
    found = embedded()
    t = torch.zeros(3, 1)
    for measure in (protocol.new_poses, protocol.unknown):
        assert measure(found, t, move, seed=0) == measure(found, None, None, seed=0)


def test_embeddings_that_ignore_the_pose_are_right_everywhere():
    found = embedded(still=True)
    assert protocol.new_poses(found, None, None, seed=0) == 1.0
    assert protocol.unknown(found, None, None, seed=0) == 1.0


def test_labels_that_are_exchanged_between_unknown_instances_are_wrong_everywhere():
    found = embedded(still=True)
    queries = torch.cat([found.unknown[:, :1], found.unknown.roll(1, dims=0)[:, 1:]], dim=1)
    exchanged = Embedded(found.train, found.diverse, found.new_poses, queries)
    assert protocol.unknown(exchanged, None, None, seed=0) == 0.0


def test_exact_operators_explain_all_motion_and_none_explains_nothing():
    assert protocol.explained(embedded(), infer, move) == pytest.approx(0, abs=1e-6)
    assert protocol.explained(embedded(), infer, lambda rows, t: rows) == pytest.approx(1)


def test_sets_of_images_become_instances_by_poses(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path))
    sets = draw(PantryObjects(), PoseCounts(diverse=2, typical=2, unknown=3, poses=4), size=8, seed=0)
    found = Embedded.of(sets, lambda images: images.float().flatten(1)[:, :5])
    assert [list(part.shape) for part in (found.train, found.new_poses, found.unknown)] == [
        [4, 4, 5],
        [2, 4, 5],
        [3, 4, 5],
    ]
    assert found.train[1, 2].tolist() == sets.train.images[6].float().flatten()[:5].tolist()
    doubled = found.map(lambda rows: 2 * rows)
    assert torch.equal(doubled.unknown, 2 * found.unknown)
