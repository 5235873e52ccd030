# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from PIL import Image

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.data.loader import StepBatches
from recipes_lib.errors import ConfigError
from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.perceiver import PerceiverIO
from recipes_lib.models.vit import VisionTransformer
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.nac import priors
from recipes_lib.recipes.nac import recipe as nac

TINY = override(
    nac.PRESETS["toy"],
    {"data.train_size": 64, "data.test_size": 32, "train.steps": 3, "train.batch_size": 16, "eval.baselines": "none"},
)
GRAPH = {"loss.graph": "planted_partition", "loss.clusters": 2, "model.bandwidth": 0.5}
VIT = {"model.arch": "vit_pico", "model.module_dropout": 0.0}


def method(changes: dict | None = None) -> nac.CircuitClassifier:
    return engine.build(nac.RECIPE, override(TINY, changes or {}), steps=3)


def views(made: nac.CircuitClassifier, step: int = 0) -> dict:
    batches = StepBatches(load(made.config.data, DATA_SEED).train, seed=0, batch_size=16)
    return made.views(batches[0], step)


def test_a_run_reports_accuracy_links_and_the_accuracy_of_pruned_circuits(tmp_path):
    result = nac.RECIPE.run(override(TINY, {"eval.baselines": "all", **GRAPH}), tmp_path / "run")
    assert set(result.report["scores"]["accuracy"]) == {"method", "random_init"}
    assert list(result.report["diagnostics"]) == ["links", "kept_half", "kept_quarter", "kept_eighth"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["prior"] > 0


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"model.control": "dense"}, NeuralAttentiveCircuit),
        ({"model.control": "perceiver"}, PerceiverIO),
        (VIT, VisionTransformer),
    ],
)
def test_controls_and_other_backbones_are_trained_by_the_same_recipe(tmp_path, changes, kind):
    assert isinstance(method(changes).backbone, kind)
    assert "accuracy" in nac.RECIPE.run(override(TINY, changes), tmp_path / "run").report["scores"]


def test_a_step_runs_the_modules_that_its_number_draws():
    made = method({"model.module_dropout": 1.0})
    kept = [views(made, step)["kept"] for step in range(20)]
    assert len({len(each) for each in kept}) > 3
    assert torch.equal(kept[3], views(made, 3)["kept"])
    assert views(method({"model.module_dropout": 0.0}))["kept"] is None
    counts = []
    made.backbone.read_in.leave.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[1]))
    made.train()(views(made, 4))
    assert counts == [len(kept[4])]


def test_links_are_drawn_from_the_samples_and_not_from_the_global_generator():
    made = method({"model.module_dropout": 0.0}).train()
    torch.nn.init.normal_(made.head.weight)
    given = views(made)
    torch.manual_seed(1)
    first = made(given)["loss"]
    torch.manual_seed(2)
    torch.testing.assert_close(made(given)["loss"], first, rtol=0, atol=0)
    assert made(given | {"keys": given["keys"].flip(0)})["loss"] != first


def test_the_prior_is_a_second_term_of_the_loss():
    plain, pulled = method({"model.bandwidth": 0.5}).train(), method({**GRAPH, "loss.prior": 3.0}).train()
    pulled.load_state_dict(plain.state_dict())
    given = views(plain)
    found = pulled(given)
    target = priors.planted_partition(16, 2)
    want = priors.prior_loss(plain.backbone.circuit().signatures[:16], target, bandwidth=0.5)
    torch.testing.assert_close(found["prior"], want.detach())
    torch.testing.assert_close(found["loss"], plain(given)["loss"] + 3 * want)
    found["loss"].backward()
    assert pulled.backbone.circuit.signatures.grad.abs().sum() > 0


def test_only_kept_modules_classify():
    made = method().eval()
    torch.nn.init.normal_(made.head.weight)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made.kept = torch.tensor([2, 9])
    want = made.head(made.backbone(images, kept=made.kept))
    torch.testing.assert_close(made.classify(images), want)
    made.kept = None
    assert not torch.allclose(made.classify(images), want)


def test_matrices_decay_and_codes_signatures_positions_and_norms_do_not():
    made = method()
    names = {parameter: name for name, parameter in made.named_parameters()}
    decays = {names[parameter]: group["decays"] for group in made.param_groups() for parameter in group["params"]}
    assert set(decays) == set(names.values())
    assert decays["head.weight"]
    assert decays["backbone.blocks.0.query.linear.weight"]
    spared = ("codes", "signatures", "positions", "bias", "gain", "norm.weight")
    assert not any(decays[name] for name in decays if name.endswith(spared))


@pytest.mark.parametrize("graph", ["planted_partition", "ring_of_cliques", "watts_strogatz", "erdos_renyi"])
def test_every_graph_is_a_target_of_the_circuits_modules(graph):
    loss = nac.CircuitLoss(graph=graph, clusters=4, outside=0.2, neighbours=8)
    assert loss.target(16).shape == (16, 16)


def test_the_papers_presets_have_its_networks_and_rates():
    tiny, imagenet = nac.PRESETS["tiny_imagenet"], nac.PRESETS["imagenet"]
    assert (tiny.model.arch, tiny.model.truncation, tiny.model.drop_path) == ("nac_320", 0.9, 0.1)
    assert (tiny.train.epochs, tiny.train.batch_size, tiny.optim.lr) == (400.0, 128, 5e-4 / 4)
    assert (imagenet.model.arch, imagenet.train.epochs) == ("nac_640", 110.0)
    for preset in ("laptop", "tiny_imagenet", "tiny_imagenet_perceiver", "imagenet"):
        override(nac.PRESETS[preset], {"data.root": "somewhere"}).validate()
        with torch.device("meta"):
            nac.network(nac.PRESETS[preset])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.classes": 1}, "model.classes = 1"),
        ({"model.module_dropout": 1.5}, "model.module_dropout = 1.5"),
        ({"model.bandwidth": 0.0}, "model.bandwidth = 0.0"),
        ({"model.arch": "vit_pico"}, "model.module_dropout = 0.8 is not allowed"),
        ({**VIT, "model.bandwidth": 0.5}, "model.bandwidth = 0.5"),
        ({**VIT, "model.control": "dense"}, "model.control = dense"),
        ({"model.control": "perceiver", "model.bandwidth": 0.5}, "model.bandwidth = 0.5"),
        ({"model.control": "dense", **GRAPH}, "loss.graph = planted_partition"),
        ({"loss.graph": "planted_partition", "loss.clusters": 2}, "cannot be reached: with bandwidth 1"),
        ({**GRAPH, "loss.clusters": 3}, "16 modules do not divide among 3 clusters"),
        ({"loss.graph": "scale_free"}, "cannot be reached"),
        ({"loss.prior": -1.0}, "loss.prior = -1.0"),
        ({"loss.inside": 0.0}, "loss.inside = 0.0"),
        ({"model.patch_size": 3}, "model.patch_size = 3 does not divide"),
        ({"data.layout": "cub"}, "data.name = digits"),
    ],
)
def test_faults_are_named(changes, said):
    with pytest.raises(ConfigError) as caught:
        override(TINY, changes).validate()
    assert said in str(caught.value)


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tmp_path):
    for split in ("train/n01/images", "train/n02/images", "val/images"):
        (tmp_path / split).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / split / f"{split[-9:-7]}.JPEG")
    names = [path.name for path in (tmp_path / "val" / "images").iterdir()]
    (tmp_path / "val" / "val_annotations.txt").write_text(f"{names[0]}\tn02\t0\t0\t1\t1\n")
    found = nac.load(override(nac.PRESETS["tiny_imagenet"], {"data.root": str(tmp_path)}), print)
    assert (len(found.train), found.test.labels.tolist()) == (2, [1])
