# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X's toy: nets that are trained and asked on Pantry-X, here with few pictures and steps."""

import json

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data import pantry
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError
from recipes_lib.recipes.imagenet_x import pantry_nets, pantry_run, pantry_x
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x
from recipes_lib.training.folder import RunFolder

FEW = {"data.images": 200, "nets.images": 256, "nets.steps": 2, "nets.clip_steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = override(imagenet_x.PRESETS["toy"], FEW)
    return imagenet_x.RECIPE.run(config, tmp_path_factory.mktemp("pantry") / "run")


def test_each_net_learns_plainly_and_with_each_augmentation_from_labels_and_from_captions(run):
    names = list(pantry_nets.AUGMENTATIONS)
    assert list(run.report["models"]) == [*names, *(f"clip-{name}" for name in names)]
    assert set(run.report["models"]["plain"]["multi"]["class"]) == set(pantry_x.FACTORS)
    assert set(run.report["groups"]["multi"]["class"]) == {"teacher"}
    assert run.report["images"]["counted"]["class"] == 200
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["net"], line["step"]) for line in lines] == [
        (name, step) for name in run.report["models"] for step in (1, 2)
    ]


def test_the_page_names_the_pantrys_classes_and_nobody_elses_licence(run):
    page = (run.folder / "index.html").read_text()
    assert "There are 12 classes; the five on which a model is worst" in page
    assert any(f"{name} 0." in page for name in pantry.CLASSES)
    assert "CC BY-NC" not in page


def test_a_net_that_was_kept_is_not_trained_again(run, monkeypatch):
    config = override(imagenet_x.PRESETS["toy"], FEW)
    for teach in ("with_labels", "with_captions"):
        monkeypatch.setattr(pantry_nets, teach, lambda *given: pytest.fail("a net is trained twice"))
    again = pantry_run.make(config, RunFolder.open(run.folder))
    assert again.predictions.models == tuple(run.report["models"])
    right = (again.predictions.classes == again.annotations.val.labels).mean(axis=1)
    assert dict(zip(again.predictions.models, right.tolist(), strict=True)) == {
        name: pytest.approx(shares["class"]) for name, shares in run.report["average"].items()
    }


def test_a_net_can_be_opened_again_and_answers_alike(run):
    asked = pantry_x.image_set(200, 0, "test", dict.fromkeys(pantry_x.FACTORS, 0.12))
    right = pantry_nets.answers(pantry_run.reopen(run.folder, "jitter"), asked) == asked.labels.numpy()
    assert right.mean() == pytest.approx(run.report["average"]["jitter"]["class"])


def test_it_is_not_trained_by_several_processes(monkeypatch, tmp_path):
    several = World(rank=0, size=2, device=torch.device("cpu"))
    monkeypatch.setattr(imagenet_x.stages, "start", lambda device, threads: several)
    with pytest.raises(ConfigError, match="trains in one process, not in 2: start it without torchrun"):
        imagenet_x.RECIPE.run(imagenet_x.PRESETS["toy"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
