# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from recipes_lib.config import override
from recipes_lib.errors import ConfigError
from recipes_lib.models import exports, tcnn
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.tcnn import recipe, start
from recipes_lib.recipes.tcnn.study import CNN
from tests.recipes.tcnn.test_recipe import tiny


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return recipe.RECIPE.run(tiny("simmer"), tmp_path_factory.mktemp("start") / "cnn").folder


def images(side: int = 32) -> torch.Tensor:
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def started(place, preset: str = "finetune", **changes):
    """A method that took over what is in ``place``, in evaluation mode, and the warnings."""
    config = tiny(preset, **{"model.init": place, **changes})
    method, told = engine.build(recipe.RECIPE, config, steps=1), []
    start.take_over(method, place, told.append)
    return method.eval(), told


def test_the_run_of_a_convnet_is_taken_over_with_its_head(cnn):
    _, trained = engine.reopen(recipe.RECIPE, cnn)
    exact = {"model.gate": "linear", "model.gate_logit": 10.0}
    for changes in (CNN, exact):
        method, told = started(cnn, **changes)
        torch.testing.assert_close(method.classify(images()), trained.eval().classify(images()), rtol=1e-5, atol=1e-5)
        assert told == []


def test_a_tcnn_goes_on_with_its_own_gates(cnn, tmp_path):
    first = recipe.RECIPE.run(tiny("finetune", **{"model.init": cnn}), tmp_path / "first").folder
    _, trained = engine.reopen(recipe.RECIPE, first)
    method, told = started(first)
    torch.testing.assert_close(method.classify(images()), trained.eval().classify(images()))
    assert told == []
    assert torch.equal(method.backbone.layers[4][0].gate, trained.backbone.layers[4][0].gate)
    with pytest.raises(ConfigError, match=r"holds another network than model\.arch = convnet_small .* left over"):
        started(first, **CNN)


def test_a_backbone_that_was_pretrained_without_labels_is_taken_over_without_a_head(tmp_path):
    config = override(
        families.PRESETS["simclr_toy"],
        {
            "model.arch": "convnet_small",
            "train.steps": 2,
            "train.batch_size": 8,
            "data.train_size": 32,
            "data.test_size": 16,
            "eval.probes": (),
            "views.normalize": "openai",
        },
    )
    run = families.RECIPE.run(config, tmp_path / "run").folder
    method, told = started(run, **CNN)
    _, found = engine.reopen(families.RECIPE, run)
    assert torch.equal(method.backbone.layers[0][0].weight, found.backbone.layers[0][0].weight)
    assert told == [
        f"model.init = {run} was trained with views.normalize openai, and this run has imagenet.",
        f"model.init = {run} has no classifier, so the linear head starts anew.",
    ]


def test_an_exported_folder_is_taken_over(cnn, tmp_path):
    _, trained = engine.reopen(recipe.RECIPE, cnn)
    exports.write(trained.backbone, tmp_path / "net", "timm")
    method, told = started(tmp_path / "net", **CNN)
    torch.testing.assert_close(method.backbone(images()), trained.eval().backbone(images()))
    assert len(told) == 1
    assert "no classifier" in told[0]


@pytest.mark.parametrize(("classes", "taken"), [(10, True), (7, False)])
def test_a_resnet_of_timm_is_taken_over_with_a_classifier_of_as_many_classes(tmp_path, classes, taken):
    theirs = timm.create_model("resnet18", num_classes=classes).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": "resnet18", "num_classes": classes, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    arch = {"model.arch": "tcnn_resnet18", "model.stem": "imagenet", "model.gate": "linear", "model.gate_logit": 10.0}
    method, told = started(tmp_path, **arch)
    torch.testing.assert_close(
        method.backbone(images(64)),
        theirs.forward_head(theirs.forward_features(images(64)), pre_logits=True),
        rtol=1e-4,
        atol=1e-4,
    )
    assert torch.equal(method.head.weight, theirs.fc.weight) == taken
    assert [line for line in told if "classes" in line] == (
        [] if taken else [f"model.init = {tmp_path} has a classifier of 7 classes, so the linear head starts anew."]
    )
    assert len(tcnn.gates(method.backbone)) == 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda place: None, "cannot be used. .* does not exist"),
        (lambda place: place.mkdir(), r"cannot be used\. .*config\.json"),
        (lambda place: place.write_text("x"), "cannot be used. .* is neither a folder"),
    ],
    ids=["missing", "empty", "text"],
)
def test_a_place_without_weights_is_told_in_one_line(tmp_path, make, told):
    make(tmp_path / "weights")
    with pytest.raises(ConfigError, match=told) as caught:
        started(tmp_path / "weights")
    assert "\n" not in str(caught.value)


def test_a_run_of_another_network_is_told_with_what_was_expected(cnn):
    with pytest.raises(
        ConfigError,
        match=r"holds another network than model\.arch = tcnn_resnet18 starts from, which is resnet18 with stem cifar",
    ):
        started(cnn, **{"model.arch": "tcnn_resnet18"})
