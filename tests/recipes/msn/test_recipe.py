# SPDX-License-Identifier: Apache-2.0
"""MSN as a method: what its gradient reaches, what its target sees, what its config refuses."""

from dataclasses import replace

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.errors import ConfigError
from recipes_lib.pretraining import engine
from recipes_lib.recipes.msn import recipe as msn

TINY = override(
    msn.PRESETS["toy"],
    {
        "model.hidden": 32,
        "model.dim": 16,
        "model.prototypes": 8,
        "views.local_views": 2,
        "views.local_size": 8,
        "views.mask_ratio": 0.5,
        "train.batch_size": 8,
        "train.steps": 10,
    },
)


def method(config: msn.Config = TINY) -> msn.MSN:
    return engine.build(msn.RECIPE, config, steps=10)


def batch(size: int = 8, epoch: int = 0) -> Batch:
    images = torch.randint(0, 256, (size, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), epoch, images, None, None)


def test_gradient_reaches_anchor_and_prototypes_and_never_the_target():
    model = method()
    model(model.views(batch(), step=0))["loss"].backward()
    missing = [n for n, p in model.anchor.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a batch norm follows the first two linear layers of the head: it takes their biases' gradient to zero
    assert all(name.startswith("head") and name.endswith("bias") for name in missing), missing
    assert model.prototypes.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.target.parameters())


def test_the_target_follows_the_anchor_by_the_momentum_of_the_step():
    model = method(override(TINY, {"model.ema": 0.9, "model.ema_final": 0.9}))
    before = [p.clone() for p in model.target.parameters()]
    with torch.no_grad():
        for p in model.anchor.parameters():
            p.add_(1.0)
    model.after_step(0)
    for old, new in zip(before, model.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_running_statistics_of_the_target_are_its_own():
    model = method()
    model(model.views(batch(), step=0))
    own = dict(model.target.named_buffers())
    anchors = dict(model.anchor.named_buffers())
    running = [name for name in own if name.endswith("running_mean")]
    assert running
    assert any(not torch.equal(own[name], anchors[name]) for name in running)
    model.after_step(0)
    assert all(torch.equal(own[name], dict(model.target.named_buffers())[name]) for name in running)


def test_the_mask_drops_patches_of_the_global_anchors_only():
    views = method().views(batch(), step=0)
    assert views["keep"].shape == (8, 8)  # 16 patches, half of them
    assert views["local"].shape == (16, 3, 8, 8)
    assert views["target"].shape == views["global"].shape == (8, 3, 32, 32)


def test_views_of_an_image_do_not_depend_on_its_batch():
    model = method()
    whole = model.views(batch(), step=0)
    part = batch()
    part = replace(part, indices=part.indices[4:], images=part.images[4:])
    half = model.views(part, step=0)
    torch.testing.assert_close(half["target"], whole["target"][4:])
    assert torch.equal(half["keep"], whole["keep"][4:])


def test_epochs_draw_other_views_and_other_masks():
    model = method()
    first, second = model.views(batch(epoch=0), step=0), model.views(batch(epoch=1), step=1)
    assert not torch.equal(first["keep"], second["keep"])
    assert (first["target"] - second["target"]).abs().max() > 0.1


def test_a_shared_mask_is_one_mask_and_changes_with_the_step():
    model = method(override(TINY, {"views.mask_per_image": False}))
    keep = model.views(batch(), step=0)["keep"]
    assert (keep == keep[0]).all()
    assert not torch.equal(keep, model.views(batch(), step=1)["keep"])


def test_building_a_method_leaves_the_global_random_state_alone_and_repeats():
    state = torch.random.get_rng_state()
    first, second = method(), method()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = method(override(TINY, {"train.seed": 1}))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_paper_preset_has_the_released_values():
    paper = msn.PRESETS["vits16_imagenet"]
    assert (paper.train.batch_size, paper.train.epochs, paper.views.mask_ratio) == (1024, 800, 0.15)
    assert (paper.optim.lr_start, paper.optim.lr, paper.optim.lr_final) == (2e-4, 1e-3, 1e-6)
    assert (paper.optim.weight_decay, paper.optim.weight_decay_final, paper.optim.clip) == (0.04, 0.4, 3.0)
    assert (paper.views.global_views, paper.views.local_views, paper.model.prototypes) == (1, 10, 1024)
    assert (paper.loss.temperature, paper.loss.sharpen_temperature, paper.loss.sinkhorn_iterations) == (0.1, 0.25, 3)


def test_the_papers_two_ways_to_balance_differ_in_sinkhorn_and_lambda_alone():
    with_sinkhorn, without = (msn.PRESETS[f"vits16_imagenet{name}"] for name in ("", "_no_sinkhorn"))
    assert (with_sinkhorn.loss.sinkhorn_iterations, with_sinkhorn.loss.me_max_weight) == (3, 1.0)
    assert (without.loss.sinkhorn_iterations, without.loss.me_max_weight) == (0, 5.0)
    assert override(without, {"loss.sinkhorn_iterations": 3, "loss.me_max_weight": 1.0}) == with_sinkhorn


def test_the_large_paper_run_has_the_papers_epochs_and_batch():
    large = msn.PRESETS["vitb4_imagenet"]
    assert (large.train.epochs, large.train.batch_size, large.views.mask_ratio) == (300, 1024, 0.7)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("views.mask_ratio", 1.0, r"views.mask_ratio = 1.0 .*\[0, 1\)"),
        ("views.mask_ratio", 0.99, r"leaves no visible patch \(16 patches, 0 kept\)"),
        ("model.patch_size", 5, r"model.patch_size = 5 .*power of two"),
        ("model.layer_scale", True, r"model.layer_scale = True .*batch norm would divide rounding noise"),
        ("views.image_size", 18, r"model.patch_size = 8 does not divide views.image_size = 18"),
        ("data.image_size", 36, r"model.patch_size = 8 does not divide data.image_size = 36"),
        ("loss.temperature", 0.0, r"loss.temperature = 0.0 .*above 0"),
        ("loss.sharpen_temperature", 1.5, r"loss.sharpen_temperature = 1.5 .*\(0, 1\]"),
        ("model.ema", 1.1, r"model.ema = 1.1 .*\[0, 1\]"),
        ("train.steps", 0, r"train.steps = 0 .*at least 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(field, value, words):
    with pytest.raises(ConfigError, match=words):
        override(TINY, {field: value}).validate()


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        override(TINY, {"loss.temperature": -1.0, "optim.lr": 0.0, "model.dim": 1}).validate()
    assert len(str(caught.value).splitlines()) >= 3


@pytest.mark.parametrize(
    "net",
    [
        {"model.arch": "convit_pico", "model.stem": "patch", "model.patch_size": 8},
        {"model.arch": "tcnn_convnet_small", "model.stem": "cifar"},
        {"model.arch": "resnet18", "model.stem": "cifar"},
    ],
    ids=lambda net: net["model.arch"],
)
def test_without_masks_any_backbone_learns(net):
    config = override(TINY, {**net, "views.mask_ratio": 0.0})
    config.validate()
    model = method(config)
    loss = model(model.views(batch(), 0))["loss"]
    loss.backward()
    assert all(weight.grad is not None for weight in model.anchor.backbone.parameters() if weight.requires_grad)
    with pytest.raises(
        ConfigError, match=r"views\.mask_ratio = 0\.15 is not allowed: use a value of 0 with \w+\. Only a vit"
    ):
        override(config, {"views.mask_ratio": 0.15}).validate()
