# SPDX-License-Identifier: Apache-2.0
"""BYOL, SimSiam and DINO as methods: what gets a gradient, what moves when, what two processes share, what resumes."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError
from recipes_lib.objectives import distillation as objective
from recipes_lib.optim import build as optim
from recipes_lib.optim import schedules
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.families import distillation, recipe
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import checkpoint

TINY = {
    "data.train_size": 64,
    "data.test_size": 16,
    "train.batch_size": 16,
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "eval.baselines": "none",
    "eval.probes": [],
}
SMALL_HEADS = {"model.hidden": 16, "model.dim": 8}
FULL = {"loss.koleo_weight": 0.1, "model.registers": 2, "views.local_views": 2, "views.local_size": 16}
"""DINO with all its options, on top of ``ibot_toy``."""
NAMES = ("byol", "simsiam", "dino", "ibot")


def config(name: str, **changes: object) -> Config:
    options = FULL if name == "ibot" else {}
    return override(recipe.PRESETS[f"{name}_toy"], {**TINY, **SMALL_HEADS, **options, **changes})


def method(settings: Config, steps: int = 4) -> distillation.DINO | distillation.BYOL | distillation.SimSiam:
    return engine.build(recipe.RECIPE, settings, steps=steps)


def batch(count: int = 16, start: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (start + count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(torch.arange(start, start + count), 0, pixels[start:], None, None)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_all_that_is_trained_and_nothing_of_the_teacher(name):
    model = method(config(name))
    model(model.views(batch(), 0))["loss"].backward()
    taught = {key for key, p in model.named_parameters() if "teacher" in key}
    assert bool(taught) == (name != "simsiam")
    assert {key for key, p in model.named_parameters() if p.grad is None} == taught
    handed = [p for group in model.param_groups() for p in group["params"]]
    assert len(handed) == len(set(handed)) == len([key for key, _ in model.named_parameters()]) - len(taught)


@pytest.mark.parametrize("name", ["byol", "dino", "ibot"])
def test_the_teacher_starts_as_the_student_and_follows_it_on_a_cosine(name):
    model = method(config(name))
    pairs = [(key, p) for key, p in model.named_parameters() if "teacher" in key]
    online = dict(model.named_parameters())
    twin = {
        key: online[key.replace("teacher_prototypes", "prototypes").replace("teacher.", "encoder.")] for key, _ in pairs
    }
    assert all(torch.equal(p, twin[key]) for key, p in pairs)
    before = {key: p.clone() for key, p in pairs}
    with torch.no_grad():
        for p in model.param_groups():
            for weight in p["params"]:
                weight.add_(1.0)
    model.after_step(1)
    moved = 1 - schedules.cosine(1, model.config.model.ema, model.config.model.ema_final, 4)
    for key, p in pairs:
        torch.testing.assert_close(p, before[key] + moved, rtol=0, atol=1e-6)


def test_what_is_evaluated_is_byols_encoder_and_dinos_teacher():
    byol, dino = method(config("byol")), method(config("dino"))
    assert byol.backbone is byol.encoder.backbone
    assert dino.backbone is dino.teacher.backbone


def test_the_predictors_rate_stays_at_its_peak_and_the_encoders_falls():
    settings = config("simsiam")
    model = method(settings)
    optimizer = optim.build(settings.optim, model.param_groups())
    schedule = optim.Schedule(config=settings.optim, steps=4, steps_per_epoch=1)
    schedule.apply(optimizer, 3)
    ahead = set(model.predictor.parameters())
    rates = {bool(set(group["params"]) & ahead): group["lr"] for group in optimizer.param_groups}
    assert rates[True] == settings.optim.lr > rates[False]


def test_without_layers_the_predictor_is_the_identity():
    model = method(config("simsiam", **{"model.predictor_layers": 0}))
    assert list(model.predictor.parameters()) == []
    z = torch.randn(3, 8)
    assert torch.equal(model.predictor(z), z)


def test_dinos_loss_uses_the_old_centre_and_moves_it_afterwards():
    model = method(config("dino"))
    views = model.views(batch(), 0)
    first = model(views)
    with torch.no_grad():
        teacher = model.teacher_prototypes(model.teacher(views["large"]), 1.0).unflatten(0, (2, -1))
        student = model.prototypes(model.encoder(views["large"]), 1.0).unflatten(0, (2, -1))
    want = objective.dino_loss(student, teacher, torch.zeros(64), teacher_temperature=model.teacher_temperature(0))
    torch.testing.assert_close(first["loss"].detach(), want["loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.centre, 0.1 * teacher.mean(dim=(0, 1)), rtol=0, atol=1e-6)
    assert model(views)["loss"] != first["loss"]


def test_prototypes_stand_still_for_their_share_of_the_run():
    settings = config("dino", **{"loss.freeze_prototypes": 0.5})
    model = method(settings)
    optimizer = optim.build(settings.optim, model.param_groups())
    schedule = optim.Schedule(config=settings.optim, steps=4, steps_per_epoch=1)
    first = model.prototypes.weight.detach().clone()
    for step in range(4):
        schedule.apply(optimizer, step)
        model(model.views(batch(), step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.equal(model.prototypes.weight, first) == (step < 2)


def test_the_teachers_temperature_rises_over_its_share_of_the_run():
    warm = {"loss.teacher_temperature_start": 0.04, "loss.teacher_temperature": 0.07, "loss.teacher_warmup": 0.5}
    model = method(config("dino", **warm), steps=100)
    assert [model.teacher_temperature(step) for step in (0, 25, 50, 99)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert method(config("dino")).teacher_temperature(0) == model.config.loss.teacher_temperature_start


def test_half_of_the_large_views_hide_a_share_of_their_patches_from_the_student():
    model = method(config("ibot"))
    masked = model.views(batch(200), 0)["masked"]
    assert masked.shape == (400, 16)
    assert set(masked.sum(dim=1).tolist()) == {0, 5}  # 0.3 x 16 = 4.8
    assert 0.4 < masked.any(dim=1).float().mean() < 0.6
    assert not torch.equal(masked[:200], masked[200:])
    assert torch.equal(masked, model.views(batch(200), 1)["masked"])  # from the image, not from the step


def test_the_student_does_not_see_hidden_patches_and_the_teacher_does():
    model = method(config("ibot", **{"loss.koleo_weight": 0.0, "views.local_views": 0})).eval()
    views = model.views(batch(), 0)
    views["masked"] = torch.ones_like(views["masked"])
    views["large"] = views["large"].requires_grad_()
    features, patches = model.features(model.encoder.backbone, views["large"], views["masked"])
    assert features.shape == (32, 64)
    assert patches.shape == (32, 16, 64)  # without [CLS] and registers
    assert torch.autograd.grad(patches.sum(), views["large"], allow_unused=True)[0].abs().max() == 0
    _, seen = model.features(model.teacher.backbone, views["large"])
    assert torch.autograd.grad(seen.square().sum(), views["large"])[0].abs().max() > 0


def test_the_loss_is_the_weighted_sum_of_its_terms():
    def loss(**weights: float) -> dict[str, Tensor]:
        model = method(config("ibot", **{f"loss.{name}": value for name, value in weights.items()}))
        return {name: value.detach() for name, value in model(model.views(batch(), 0)).items()}

    whole, half = loss(), loss(patch_weight=2.0, koleo_weight=0.5)
    assert set(whole) == {"loss", "teacher_entropy", "kl", "patch", "koleo", "std"}
    for parts, patch, koleo in ((whole, 1.0, 0.1), (half, 2.0, 0.5)):
        total = parts["teacher_entropy"] + parts["kl"] + patch * parts["patch"] + koleo * parts["koleo"]
        torch.testing.assert_close(parts["loss"], total, rtol=0, atol=1e-5)


def test_settings_that_do_not_go_together_are_refused():
    for changes, message in [
        ({"views.mask_ratio": 0.0}, "views.mask_ratio = 0.0 is not allowed: use a value above 0"),
        ({"loss.patch_weight": 0.0}, "views.mask_ratio = 0.3 is not allowed: use a value of 0"),
        ({"model.pool": "mean"}, "model.pool = mean is not allowed"),
    ]:
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            config("ibot", **changes).validate()


def train(settings: Config, steps: int, images: int = 32) -> dict[str, float]:
    """The last step's metrics of a short training on random images."""
    model = method(settings, steps)
    optimizer = optim.build(settings.optim, model.param_groups())
    schedule = optim.Schedule(config=settings.optim, steps=steps, steps_per_epoch=1)
    views = model.views(batch(images), 0)
    for step in range(steps):
        schedule.apply(optimizer, step)
        parts = model(views | {"step": step})
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.after_step(step)
    return {name: float(value.detach()) for name, value in parts.items()}


def test_without_stop_gradient_all_embeddings_become_the_same():
    changes = {"model.projector_layers": 1, "model.last_norm": False}
    intact = train(config("simsiam", **changes), 25)
    broken = train(config("simsiam", **changes, **{"loss.stop_gradient": False}), 25)
    assert broken["loss"] < -0.97 < intact["loss"]
    assert broken["std"] < 0.5 * intact["std"]


def test_without_a_predictor_byols_embeddings_become_the_same():
    changes = {"model.projector_layers": 1, "model.last_norm": False, "model.ema": 0.0, "model.ema_final": 0.0}
    intact = train(config("byol", **changes), 25)
    broken = train(config("byol", **changes, **{"model.predictor_layers": 0}), 25)
    assert broken["std"] < 0.5 * intact["std"]


def test_without_centring_the_teacher_becomes_sure_of_few_prototypes():
    cold = {"loss.teacher_temperature": 0.02, "loss.teacher_temperature_start": 0.02, "loss.freeze_prototypes": 0.0}
    intact = train(config("dino", **cold), 25)
    broken = train(config("dino", **cold, **{"loss.centre_momentum": 1.0}), 25)
    assert broken["teacher_entropy"] < 0.5 * intact["teacher_entropy"]


def step_of_a_share(name: str) -> dict[str, Tensor]:
    """The loss, the gradients and the centres after a step with this rank's half of the images, as DDP averages them."""
    ranks, rank = collectives.world_size(), collectives.rank()
    model = method(config(name)).double()
    share = 16 // ranks
    views = model.views(batch(16), 0)
    mine = {
        key: value.unflatten(0, (-1, 16))[:, rank * share : (rank + 1) * share].flatten(0, 1)
        if isinstance(value, Tensor)
        else value
        for key, value in views.items()
    }
    parts = model(
        {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in mine.items()}
    )
    parts["loss"].backward()
    found = {key: value.detach() for key, value in parts.items()}
    found |= {f"gradient of {key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    centres = {key: value for key, value in model.named_buffers() if "centre" in key}  # equal on all ranks
    return {key: collectives.all_reduce_mean(value.contiguous()) for key, value in found.items()} | centres


def every_method() -> dict[str, dict[str, Tensor]]:
    return {name: step_of_a_share(name) for name in NAMES}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_the_gradient_and_the_centres_of_one():
    alone = every_method()
    assert {"centre", "patch_centre"} <= set(alone["ibot"])
    for rank in run_ranks(every_method, 2):
        for name, values in alone.items():
            for key, value in values.items():
                torch.testing.assert_close(
                    rank[name][key], value, rtol=1e-6, atol=1e-8, msg=lambda text, k=f"{name} {key}": f"{k}: {text}"
                )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_bit_for_bit_with_its_teacher_and_centres(name, tmp_path):
    settings = config(name, **({"loss.freeze_prototypes": 0.6} if name == "dino" else {}))

    whole = engine.pretrain(recipe.RECIPE, settings, tmp_path / "whole").folder
    stopped = Path(shutil.copytree(whole, tmp_path / "stopped"))
    shutil.rmtree(stopped / "checkpoints" / "step-000004")
    for file in ("model.safetensors", "report.json"):
        (stopped / file).unlink()
    (stopped / "state.json").write_text('{"status": "interrupted", "step": 2}\n')
    runs.resume(recipe.RECIPE, stopped)
    first, second = (checkpoint.read(folder / "checkpoints", 4).model for folder in (whole, stopped))
    assert {"byol": "teacher.backbone", "dino": "centre", "ibot": "patch_centre"}.get(name, "predictor") in "".join(
        first
    )
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["byol_rn50", "simsiam_rn50", "dino_vits16", "dino_rn50", "ibot_vits16"])
def test_the_papers_networks_are_built(name):
    settings = recipe.PRESETS[f"{name}_imagenet"]
    override(settings, {"data.root": "/"}).validate()
    with torch.device("meta"):
        model = method(settings)
    assert 20e6 < sum(p.numel() for p in model.backbone.parameters()) < 25e6  # ResNet-50: 23.5 M; ViT-S: 21.6 M
    assert all(p.is_meta for p in model.parameters())
