# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.models import exports
from recipes_lib.models.lie_operator import LieOperator, MLPOperator
from recipes_lib.objectives.equivariance import relative_error, transfer_loss
from recipes_lib.objectives.redundancy import variance_hinge, vicreg_loss
from recipes_lib.pretraining import engine
from recipes_lib.recipes.lie_operator import recipe as lie

SMALL = {
    "data.diverse": 4,
    "data.typical": 3,
    "data.unknown": 3,
    "data.poses": 4,
    "data.image_size": 16,
    "views.image_size": 16,
    "train.steps": 3,
    "train.batch_size": 8,
    "eval.baselines": "none",
}
TINY = override(lie.PRESETS["toy"], SMALL)
MAE = {
    "model.arch": "vit_pico",
    "model.stem": "patch",
    "model.patch_size": 4,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "loss.objective": "mae",
    "loss.lie_weight": 0.0,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def method(changes: dict | None = None) -> lie.LieOperatorSSL:
    return engine.build(lie.RECIPE, override(TINY, changes or {}), steps=3)


def batch(count: int = 6, side: int = 16) -> Batch:
    images = torch.randint(256, (2, count, 3, side, side), generator=torch.Generator().manual_seed(0))
    first, second = images.to(torch.uint8)
    return Batch(torch.arange(count), 0, first, None, None, partners=second)


def test_a_run_scores_with_and_without_the_operator_and_logs_collapse(tmp_path):
    result = lie.RECIPE.run(override(TINY, {"eval.baselines": "all"}), tmp_path / "run")
    assert set(result.report["scores"]["new_poses"]) == {"method", "still", "random_init"}
    assert set(result.report["scores"]["unknown"]) == {"method", "still", "random_init"}
    assert result.report["diagnostics"]["unknown_relative_error"] > 0
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"relative_error", "latent_std", "euclid", "ssl", "lie", "spread"} <= rows[0].keys()


def test_loss_is_the_weighted_sum_of_its_terms():
    weights = {"ssl_weight": 0.5, "lie_weight": 2.0, "euclid_weight": 3.0, "spread_weight": 5.0, "penalty": 7.0}
    model = method({f"loss.{name}": value for name, value in weights.items()})
    parts = model(model.views(batch(), 0))
    names = {"ssl": 0.5, "lie": 2.0, "euclid": 3.0, "spread": 5.0, "coefficient_square": 7.0}
    wanted = sum(weight * parts[name] for name, weight in names.items())
    torch.testing.assert_close(parts["loss"], wanted)


def test_terms_are_those_of_the_embeddings_and_their_projections():
    model = method().eval()
    views = model.views(batch(), 0)
    z, other = (model.embed(model.backbone(views[name])) for name in ("first", "second"))
    moved = model.move(z, model.infer(z, other))
    projected = [model.projector(rows) for rows in (z, other, moved)]
    parts = model(views)
    torch.testing.assert_close(parts["euclid"], transfer_loss(moved, other))
    torch.testing.assert_close(parts["relative_error"], relative_error(moved, other, z))
    torch.testing.assert_close(parts["spread"], (variance_hinge(z) + variance_hinge(other)) / 2)
    torch.testing.assert_close(parts["ssl"], vicreg_loss(projected[0], projected[1])["loss"])
    torch.testing.assert_close(parts["lie"], vicreg_loss(projected[2], projected[1])["loss"])


def test_target_of_the_squared_distance_passes_no_gradient():
    model = method({"loss.ssl_weight": 1e-30, "loss.lie_weight": 0.0, "loss.spread_weight": 0.0}).eval()
    views = model.views(batch(), 0)
    views["first"].requires_grad_()
    views["second"].requires_grad_()
    model.coefficients.requires_grad_(False)
    torch.nn.init.zeros_(model.coefficients.layers[-1].weight)  # t does not depend on the target either
    model(views)["loss"].backward()
    assert views["first"].grad.abs().max() > 0
    assert views["second"].grad.abs().max() < 1e-20


def test_t_is_0_without_an_operator():
    model = method({"operator.kind": "none"}).eval()
    views = model.views(batch(), 0)
    z, other = (model.embed(model.backbone(views[name])) for name in ("first", "second"))
    parts = model(views)
    assert parts["relative_error"].item() == pytest.approx(1)
    torch.testing.assert_close(parts["euclid"], transfer_loss(z, other))
    torch.testing.assert_close(parts["lie"], parts["ssl"])


def test_kinds_of_operator():
    assert isinstance(method().operator, LieOperator)
    assert method().operator.weight.requires_grad
    assert isinstance(method({"operator.kind": "mlp"}).operator, MLPOperator)
    assert not method({"operator.kind": "random"}).operator.weight.requires_grad
    assert not method({"operator.skew": False}).operator.skew


@pytest.mark.parametrize(
    "changes",
    [{}, {"operator.kind": "mlp"}, {"operator.kind": "random"}, {"operator.kind": "none"}, {"model.frozen": True}, MAE],
)
def test_every_trainable_parameter_gets_a_gradient_and_belongs_to_one_group(changes):
    model = method(changes)
    model(model.views(batch(), 0))["loss"].backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    grouped = [p for group in model.param_groups() for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(trained)


def test_generators_do_not_decay_and_the_backbone_has_its_own_rate():
    model = method({"model.lr_scale": 0.25})
    names = {p: name for name, p in model.named_parameters()}
    by_name = {names[p]: group for group in model.param_groups() for p in group["params"]}
    assert not by_name["operator.weight"]["decays"]
    assert by_name["to_embedding.weight"]["decays"]
    scaled = {name for name, group in by_name.items() if group.get("lr_scale") == 0.25}
    assert scaled == {name for name in by_name if name.startswith("backbone")}


def test_a_frozen_backbone_stays_as_it_is_and_in_evaluation_mode(tmp_path):
    changes = {"model.frozen": True, "eval.probes": ()}
    model = method(changes).train()
    assert not model.backbone.training
    assert model.projector.training
    start = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    config = override(TINY, changes)
    run = lie.RECIPE.run(config, tmp_path / "run").folder
    _, trained = engine.reopen(lie.RECIPE, run)
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(tensor, start[name]), name
    assert not torch.equal(trained.to_embedding.weight, model.to_embedding.weight)


def test_a_run_starts_from_the_weights_of_another_and_refuses_those_of_another_network(tmp_path):
    given = method({"train.seed": 5}).backbone
    exports.write(given, tmp_path / "given", "timm")
    start = {"model.init": tmp_path / "given", "model.frozen": True, "eval.probes": ()}
    run = lie.RECIPE.run(override(TINY, start), tmp_path / "run").folder
    (tmp_path / "given").rename(tmp_path / "gone")  # a finished run has its own weights
    _, trained = engine.reopen(lie.RECIPE, run)
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name]), name
    other = {**start, "model.init": tmp_path / "gone", "model.arch": "resnet18"}
    with pytest.raises(RunError, match="the weights in"):
        lie.RECIPE.run(override(TINY, other), tmp_path / "other")


def test_images_of_a_pair_must_differ():
    same = batch()
    with pytest.raises(ValueError, match="equal for 6 of 6 pairs"):
        method().views(replace(same, partners=same.images), 0)


def test_without_partners_a_pair_is_two_views_of_one_image():
    augmented = {"data.name": "pantry", "views.global_scale": (0.3, 1.0), "eval.probes": ("knn",)}
    model = method(augmented)
    found = model.views(replace(batch(), partners=None), 0)
    assert not torch.equal(found["first"], found["second"])
    still = method().views(batch(), 0)
    assert not torch.equal(still["first"], still["second"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"loss.ssl_weight": 0.0}, r"loss.ssl_weight = 0.0 with a trained backbone: equal features"),
        (
            {"model.frozen": True, "loss.ssl_weight": 0.0, "loss.spread_weight": 0.0},
            "both 0: embeddings of 0 minimise the rest",
        ),
        ({"operator.generators": 0}, "operator.generators = 0 .*1 to 120"),
        ({"operator.generators": 121}, "operator.generators = 121 .*1 to 120"),
        ({"operator.block_size": 5}, "operator.block_size = 5 .*divides operator.dim = 16"),
        ({"data.name": "pantry"}, "two views of an image are equal"),
        ({"data.name": "pantry", "views.flip": 0.5}, "eval.probes = new_poses needs objects in several poses"),
        ({"data.azimuth": 0.0, "data.elevation": 0.0, "data.roll": 0.0}, "every pair would show one image twice"),
        ({"data.holdout": 0.1}, "data.holdout = 0.1 .*of 0.0 with pantry_poses"),
        ({"views.global_views": 2}, "views.global_views = 2 .*a pair has two images"),
        ({**MAE, "loss.lie_weight": 1.0}, "MAE has no loss between two embeddings"),
        ({"loss.objective": "mae", "loss.lie_weight": 0.0}, "a vit with stem patch for objective mae"),
        ({**MAE, "model.frozen": True}, "loss.objective = mae trains the backbone"),
        ({"operator.bound": 0.0}, "operator.bound = 0.0 .*above 0"),
        ({"data.typical": 1}, "data.typical = 1 .*at least 2"),
    ],
)
def test_faults_of_the_config_are_told_in_one_line(changes, line):
    with pytest.raises(ConfigError, match=line):
        override(TINY, changes).validate()


def test_presets_are_valid_with_a_folder_of_images(tmp_path):
    for name, config in lie.PRESETS.items():
        given = replace(config, data=replace(config.data, root=tmp_path)) if name.endswith("imagenet") else config
        given.validate()


def test_embeddings_that_shrink_lower_the_distance_alone_and_the_other_terms_tell():
    model = method().eval()
    views = model.views(batch(), 0)
    before = model(views)
    with torch.no_grad():
        for parameter in model.to_embedding.parameters():
            parameter.mul_(0.1)
    after = model(views)
    torch.testing.assert_close(after["euclid"], 0.01 * before["euclid"])
    torch.testing.assert_close(after["latent_std"], 0.1 * before["latent_std"])
    torch.testing.assert_close(after["relative_error"], before["relative_error"])  # nothing was explained
    assert after["spread"] > before["spread"]
