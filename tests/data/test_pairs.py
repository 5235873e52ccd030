# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data.pairs import PairSet


def pair_set(count: int, **changes) -> PairSet:
    parts = {
        "images": torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        "labels": torch.arange(count),
        "class_names": tuple(map(str, range(count))),
        "factors": {"kind": 10 * torch.arange(count)},
        "texts": tuple(f"text {i}" for i in range(count)),
        "uids": tuple(f"{i:032x}" for i in range(count)),
    }
    return PairSet(**{**parts, **changes})


def test_selected_pairs_keep_all_that_belongs_to_them():
    chosen = pair_set(5).select(torch.tensor([3, 1, 1]))
    assert isinstance(chosen, PairSet)
    assert chosen.images[:, 0, 0, 0].tolist() == chosen.labels.tolist() == [3, 1, 1]
    assert chosen.factors["kind"].tolist() == [30, 10, 10]
    assert chosen.texts == ("text 3", "text 1", "text 1")
    assert chosen.uids == (f"{3:032x}", f"{1:032x}", f"{1:032x}")
    assert (chosen.text(0), chosen.uid(0)) == ("text 3", f"{3:032x}")


@pytest.mark.parametrize("part", ["texts", "uids"])
def test_a_set_needs_a_text_and_a_uid_an_image(part):
    with pytest.raises(ValueError, match=f"2 {part} for 5 images"):
        pair_set(5, **{part: ("a", "b")})
