# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry.scenes import NATURAL

SCENES = ("natural", "controlled")


def same(one: pantry.Factors, other: pantry.Factors) -> bool:
    return all(torch.equal(value, getattr(other, name)) for name, value in one.to_dict().items())


@pytest.mark.parametrize("scenes", SCENES)
def test_factors_depend_on_seed_split_and_index_alone(scenes):
    whole = pantry.sample_factors(100, 5, scenes)
    whole.check()
    assert same(pantry.sample_factors(40, 5, scenes, start=60), whole.select(torch.arange(60, 100)))
    assert not same(pantry.sample_factors(100, 6, scenes), whole)


@pytest.mark.parametrize("scenes", SCENES)
def test_no_instance_is_in_both_splits(scenes):
    train, test = (pantry.sample_factors(2000, 0, scenes, split=split) for split in ("train", "test"))
    assert torch.cdist(train.instance, test.instance).min() > 0
    assert len(torch.cat([train.instance, test.instance]).unique(dim=0)) == 4000


def test_every_run_of_twelve_images_has_each_class_once():
    label = pantry.sample_factors(120, 3, split="test").label.view(10, 12)
    assert torch.equal(label.sort(1).values, torch.arange(12).expand(10, 12))
    assert len(label.unique(dim=0)) > 1


def test_natural_scenes_keep_to_the_habits_of_each_class():
    drawn = pantry.sample_factors(1200, 0)
    for position, name in enumerate(pantry.CLASSES):
        habits, rows = NATURAL[name], (drawn.label == position).nonzero()[:, 0]
        assert {pantry.BACKGROUNDS[i] for i in drawn.background[rows].tolist()} == set(habits.places)
        assert {pantry.MATERIALS[i] for i in drawn.material[rows].tolist()} == set(habits.materials)
        assert {pantry.PATTERNS[i] for i in drawn.pattern[rows].tolist()} == set(habits.patterns)
        low, high = habits.elevation
        assert low <= drawn.elevation[rows].min() <= drawn.elevation[rows].max() <= high


def one_hot(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(values).float()


def strongest_tie(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute correlation of any column with any other: columns of [N, k] each."""
    one, other = ((v - v.mean(0)) / v.std(0).clamp_min(1e-6) for v in (one, other))
    return float((one.T @ other / len(one)).abs().max())


def test_controlled_scenes_tie_no_factor_to_another():
    drawn = pantry.sample_factors(4000, 0, "controlled").to_dict()
    whole = {"label", "material", "pattern", "background", "style", "occluder", "objects"}
    columns = {n: one_hot(v) if n in whole else v.float().view(len(v), -1) for n, v in drawn.items()}
    names = sorted(columns)
    for place, name in enumerate(names):
        for other in names[:place]:
            # 5 standard errors of a correlation of independent draws, 1 / sqrt(4000)
            assert strongest_tie(columns[name], columns[other]) < 0.08, (name, other)


def test_natural_scenes_tie_colour_and_place_to_the_class():
    drawn = pantry.sample_factors(1200, 0)
    assert strongest_tie(one_hot(drawn.label), drawn.colour) > 0.2
    assert strongest_tie(one_hot(drawn.label), one_hot(drawn.background)) > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count = 0"),
        ({"start": -1}, "start = -1"),
        ({"scenes": "wild"}, "scenes = 'wild' is not known. Use natural or controlled."),
        ({"split": "val"}, "split = 'val' is not known. Use train or test."),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pantry.sample_factors(**({"count": 4, "seed": 0} | arguments))
