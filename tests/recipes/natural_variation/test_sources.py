# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.factors.gaps import CANONICAL
from recipes_lib.recipes.natural_variation import scenes, sources

POSE = ("pose",)


@pytest.fixture(scope="module")
def source() -> sources.Drawn:
    return sources.Drawn(scenes.Pantry(3), train=3, test=2, values=4, side=24, seed=5)


def test_training_and_test_instances_are_disjoint_and_no_class_shares_one(source):
    train, test = source.shots("train", POSE), source.shots("test", POSE)
    assert not set(train.instances.tolist()) & set(test.instances.tolist())
    assert len(train) == 12 * 3 * 4
    assert len(source.shots("test", CANONICAL)) == 12 * 2
    of = {(label, instance) for label, instance in zip(train.labels.tolist(), train.instances.tolist(), strict=True)}
    assert len(of) == len(set(train.instances.tolist())) == 36


def test_an_image_is_the_same_bytes_in_any_order_and_company(source):
    shots = source.shots("test", ("pose", "size"))
    together = source.images(shots)
    some = torch.tensor([31, 2, 17])
    assert torch.equal(source.images(shots.select(some)), together[some])


def test_values_of_an_instance_differ_and_are_those_of_a_larger_source(source):
    shots = source.shots("test", POSE).select(slice(0, 4))
    images = source.images(shots)
    assert all((images[0] != other).any() for other in images[1:])
    larger = sources.Drawn(scenes.Pantry(3), train=3, test=5, values=9, side=24, seed=5)
    again = larger.shots("test", POSE)
    rows = ((again.instances == shots.instances[0]) & (again.rows < 4)).nonzero()[:, 0]
    assert torch.equal(larger.images(again.select(rows)), images)


def test_a_position_varied_to_the_centre_is_the_canonical_image(source, monkeypatch):
    canonical = source.shots("test", CANONICAL).select(slice(0, 4))
    varied = source.shots("test", ("position",)).select(slice(0, 16, 4))
    monkeypatch.setattr(scenes, "FURTHEST", 0.0)
    assert torch.equal(source.images(varied), source.images(canonical))


def test_unknown_and_doubled_factors_are_named(source):
    with pytest.raises(ValueError, match=r"There is no factor 'poze'\. Did you mean 'pose'"):
        source.shots("test", ("poze",))
    with pytest.raises(
        ValueError, match=r"pose\+pose names a factor twice.*pose, position, background, lighting, size"
    ):
        source.shots("test", ("pose", "pose"))


def test_five_factors_have_ten_pairs():
    found = sources.singles_and_pairs(sources.FACTORS, pairs=True)
    assert len(found) == len(set(found)) == 15
    assert sources.singles_and_pairs(sources.FACTORS, pairs=False) == [(name,) for name in sources.FACTORS]
