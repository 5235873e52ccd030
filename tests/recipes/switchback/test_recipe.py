# SPDX-License-Identifier: Apache-2.0
"""CLIP with 8-bit layers under StableAdamW: what its presets are, and that one block of the largest trains."""

import json
import math

import pytest
import torch

from recipes_lib import lowbit
from recipes_lib.config import override
from recipes_lib.optim import StableAdamW, build, groups
from recipes_lib.pretraining import engine
from recipes_lib.recipes.switchback import recipe as switchback

SIZES = {
    "vitb32_laion2b": (151_277_313, 96),
    "vitl14_laion2b": (427_616_513, 144),
    "vith14_laion2b": (986_109_441, 224),
}
"""Parameters, those of open_clip's ViT-B-32, ViT-L-14 and ViT-H-14; and layers in low bits, four a block of either tower."""


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_presets_are_built_without_memory_and_have_the_sizes_of_their_names(name):
    pytest.importorskip("open_clip", reason="open_clip_torch is not installed: it has CLIP's vocabulary")
    with torch.device("meta"):
        model = engine.build(switchback.RECIPE, switchback.PRESETS[name], steps=1)
    layers = [layer for layer in model.modules() if isinstance(layer, lowbit.SwitchBackLinear)]
    assert (sum(p.numel() for p in model.parameters()), len(layers)) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_presets_are_its_precision_runs(name):
    config = switchback.PRESETS[name]
    assert (config.train.steps, config.train.batch_size, config.train.precision) == (20_000, 16_384, "bf16")
    assert (config.optim.lr, config.optim.warmup_steps, config.optim.betas) == (2e-3, 5_000, (0.9, 0.98))
    assert (config.optim.weight_decay, config.optim.weight_decay_final, config.optim.eps) == (0.2, 0.2, 1e-6)
    assert (config.views.patch_dropout, config.optim.clip) == (0.5, None)
    assert switchback.PRESETS["toy"].optim.betas == (0.9, 0.99)  # its stored figures were made so


def test_one_block_of_the_largest_learns():
    config = switchback.PRESETS["vith14_laion2b"]
    with torch.device("meta"):
        backbone = switchback.clip.backbones.build(config.model, image_size=224)
    block = backbone.blocks[0].to_empty(device="cpu")
    torch.manual_seed(0)
    for name, parameter in block.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.constant_(parameter, float("norm" in name and "weight" in name))
    assert lowbit.convert(block, config.model.linear) == 4
    optimizer = build.build(override(config, {"optim.lr": 1e-3}).optim, groups.decay_groups(block))
    assert isinstance(optimizer, StableAdamW)
    x, wanted = torch.randn(2, 129, 1280).unbind()  # an image of 257 tokens, half of its patches dropped
    losses = []
    for _ in range(4):
        loss = (block(x[None]) - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_a_short_run_of_the_toy_uses_integers_and_learns_as_many_steps_as_asked(tmp_path):
    small = {"data.train_size": 64, "data.test_size": 16, "train.batch_size": 16, "train.steps": 3}
    config = override(switchback.PRESETS["toy"], {**small, "eval.baselines": "none"})
    report = switchback.RECIPE.run(config, tmp_path / "run").report
    assert set(report["scores"]) == {"zero_shot", "tr1", "tr5", "ir1", "ir5"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    plain = switchback.RECIPE.run(override(config, {"model.linear": "full"}), tmp_path / "plain")
    control = [json.loads(line) for line in (plain.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(
        control[0]["loss"], rel=0.02
    )  # the same weights and batch, coarser products
    assert lines[0]["loss"] != control[0]["loss"]
    again, method = engine.reopen(switchback.RECIPE, tmp_path / "run")
    assert again == config
    assert sum(isinstance(layer, lowbit.SwitchBackLinear) for layer in method.modules()) == 4 * (2 + 2)
