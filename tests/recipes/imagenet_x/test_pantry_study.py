# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet-X chapter measures on Pantry-X, with nets of two steps."""

import pytest

from recipes_lib.recipes.imagenet_x import pantry_nets, pantry_study
from recipes_lib.recipes.imagenet_x.pantry_nets import AUGMENTATIONS, TOUCHES
from recipes_lib.recipes.imagenet_x.pantry_study import RARE, SHARES


def test_each_net_has_one_factor_at_each_share_and_each_factor_has_been_at_all():
    square = [pantry_study.latin_row(net) for net in range(len(SHARES))]
    assert all(sorted(row.values()) == list(SHARES) for row in square)
    assert all(sorted(row[name] for row in square) == list(SHARES) for name in RARE)


@pytest.fixture
def short(monkeypatch):
    """Few pictures, and nets of two steps."""
    labels, sentences = pantry_nets.with_labels, pantry_nets.with_captions
    monkeypatch.setattr(pantry_study, "TRAIN", 256)
    monkeypatch.setattr(pantry_study, "TEST", 300)
    monkeypatch.setattr(pantry_nets, "with_labels", lambda *given: labels(*given, steps=2))
    monkeypatch.setattr(pantry_nets, "with_captions", lambda *given: sentences(*given, steps=2))


@pytest.mark.usefixtures("short")
def test_a_seeds_report_has_every_figure_that_the_claims_read():
    found = pantry_study.measure(0)
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


@pytest.mark.usefixtures("short")
def test_nets_by_what_taught_them_are_compared_with_chance():
    found = pantry_study.measure_captions(0)
    assert set(found["ratio"]) == set(AUGMENTATIONS)
    assert set(found["teacher"]["ratio"]) == {"labels", "captions", "msn"}
    assert found["teacher"]["average"]["captions"] == found["average"]["plain"]
    assert -1 <= found["shared"]["mean_rank_correlation"] <= 1
    assert 0 < found["shared"]["null_95"] < 0.6
    assert found["change"]["jitter"]["pose"] == found["ratio"]["jitter"]["pose"] - found["ratio"]["plain"]["pose"]
