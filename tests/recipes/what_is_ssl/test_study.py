# SPDX-License-Identifier: Apache-2.0
"""The numbers by which the opening chapter compares networks, and what its networks differ in."""

import pytest
import torch

from recipes_lib.config import dotted, to_dict
from recipes_lib.data.load import load
from recipes_lib.evaluation.hypersphere import normalized_std
from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.what_is_ssl import recipe as opening
from recipes_lib.recipes.what_is_ssl import study

TOY = opening.PRESETS["toy"]


@pytest.mark.parametrize(
    ("name", "differ"),
    [
        ("agreement", {"loss.negatives"}),
        ("easy_views", {"views.global_scale", "views.jitter", "views.grayscale"}),
    ],
)
def test_networks_differ_in_the_one_part_named(name, differ):
    ours, other = (dotted(to_dict(study.config_of(each, TOY))) for each in ("simclr", name))
    assert {field for field in ours if ours[field] != other[field]} == differ | {"eval.baselines"}
    for each in ("simclr", name):
        study.config_of(each, TOY).validate()


def test_a_look_is_at_the_views_of_the_images_without_training():
    config = study.config_of("simclr", TOY)
    method = engine.build(families.RECIPE, config, steps=1)
    images = load(config.data, 0).test.select(torch.arange(8))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    told = study.look(method, images)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    batch = next(iter(study.whole_batches(images, 8)))
    with torch.no_grad():
        first, second = method.eval().embeddings(method.views(batch, 0))
    assert told["loss"] == pytest.approx(float(nt_xent(first, second, temperature=config.loss.temperature)["loss"]))
    assert told["agreement"] == pytest.approx(float(torch.cosine_similarity(first, second).mean()))
    assert told["spread"] == pytest.approx(normalized_std(first))
