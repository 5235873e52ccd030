# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet-X chapter measures on Pantry-X, with nets of two steps."""

import pytest
import torch

from recipes_lib.recipes import pantry_x, pantry_x_study
from recipes_lib.recipes.pantry_x_study import AUGMENTATIONS, RARE, SHARES, TOUCHES


def test_each_net_has_one_factor_at_each_share_and_each_factor_has_been_at_all():
    square = [pantry_x_study.latin_row(net) for net in range(len(SHARES))]
    assert all(sorted(row.values()) == list(SHARES) for row in square)
    assert all(sorted(row[name] for row in square) == list(SHARES) for name in RARE)


def test_what_is_touched_is_written_down_for_every_augmentation():
    assert set(TOUCHES) == set(AUGMENTATIONS) - {"plain"}
    assert {name for own in TOUCHES.values() for name in own} <= set(pantry_x.FACTORS)


def test_a_seeds_report_has_every_figure_that_the_claims_read(monkeypatch):
    train = pantry_x_study.train
    monkeypatch.setattr(pantry_x_study, "TRAIN", 128)
    monkeypatch.setattr(pantry_x_study, "TEST", 300)
    monkeypatch.setattr(pantry_x_study, "train", lambda *given: train(*given, steps=2))
    found = pantry_x_study.measure(0)
    assert set(found["ratio"]) == {*AUGMENTATIONS, "net0", "net1", "net2", "net3"}
    for key, figure in (("change", "ratio"), ("change_accuracy", "accuracy")):
        assert found[key]["crop"]["pose"] == found[figure]["crop"]["pose"] - found[figure]["plain"]["pose"]
    blur = found["change"]["blur"]
    own = [blur[name] for name in TOUCHES["blur"]]
    assert found["touched"]["blur"] == pytest.approx(sum(own) / len(own))
    assert found["untouched"]["blur"] == pytest.approx((sum(blur.values()) - sum(own)) / (len(blur) - len(own)))
    # darker is the first of the square's factors: net k has it at the k-th share
    assert [found["rarity"]["darker"][level] for level in ("1", "5", "20", "50")] == [
        found["ratio"][f"net{net}"]["darker"] for net in range(4)
    ]
    assert found["rarity"]["mean"]["50"] == pytest.approx(sum(found["rarity"][name]["50"] for name in RARE) / 4)


def test_nets_of_a_seed_start_alike_and_leave_the_global_state_alone():
    images = pantry_x.image_set(64, 0, "train", {})
    state = torch.random.get_rng_state()
    weights = [
        pantry_x_study.train(images, pantry_x_study.PLAIN, seed, steps=1).state_dict()["0.layers.0.0.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_plain_view_is_the_whole_picture_mirrored_or_not():
    from recipes_lib.data.loader import Batch
    from recipes_lib.views.multicrop import MultiCrop, eval_view

    images = pantry_x.image_set(16, 0, "train", {}).images
    (view,) = MultiCrop(pantry_x_study.PLAIN, 0)(Batch(torch.arange(16), 0, images, None, None))
    whole = eval_view(images, pantry_x.SIZE)
    same = [(torch.allclose(view[i], whole[i], atol=1e-5), torch.allclose(view[i], whole[i].flip(-1), atol=1e-5)) for i in range(16)]  # fmt: skip
    assert all(a or b for a, b in same)
    assert {pair for pair in same} == {(True, False), (False, True)}
