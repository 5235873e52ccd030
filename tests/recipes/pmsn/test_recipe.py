# SPDX-License-Identifier: Apache-2.0
"""PMSN as a method: MSN where its prior is uniform, another term where it is not; and the objectives beside it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.objectives import priors
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.recipes.pmsn import recipe as pmsn
from recipes_lib.training import checkpoint

SMALL = {
    "model.hidden": 32,
    "model.dim": 16,
    "model.prototypes": 8,
    "views.mask_ratio": 0.5,
    "train.batch_size": 8,
    "train.steps": 10,
}
TINY = override(pmsn.PRESETS["toy"], {**SMALL, "loss.exponent": 1.0})
FILED = override(
    TINY,
    {
        "data.name": "digits",
        "data.tail": 0.0,
        "data.train_size": 40,
        "data.test_size": 20,
        "loss.prior": "file",
        "loss.prior_file": "nowhere.txt",
        "train.steps": 1,
        "train.checkpoint_every": 1,
        "train.keep_checkpoints": 2,
        "eval.probes": [],
        "eval.baselines": "none",
    },
)
MSN_AGAIN = {"loss.prior": "uniform", "loss.sinkhorn": "uniform"}
OBJECTIVES = ("msn", "simclr", "vicreg", "swav")


def method(config: pmsn.Config = TINY) -> msn.MSN:
    return engine.build(pmsn.RECIPE, config, steps=10)


def batch(size: int = 8) -> Batch:
    images = torch.randint(0, 256, (size, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


def step(model: msn.MSN) -> dict[str, Tensor]:
    parts = model(model.views(batch(), step=0))
    parts["loss"].backward()
    return parts


# the prior


@pytest.mark.parametrize("uniform", [{"loss.prior": "uniform"}, {"loss.prior": "power_law", "loss.exponent": 0.0}])
def test_a_uniform_prior_is_msn_to_the_last_bit(uniform):
    ours = method(override(TINY, {**MSN_AGAIN, **uniform}))
    theirs = engine.build(msn.RECIPE, override(msn.PRESETS["toy"], SMALL), steps=10)
    mine, his = step(ours), step(theirs)
    assert mine.keys() == his.keys()
    assert all(torch.equal(mine[name], his[name]) for name in mine)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert all(p.grad is None or torch.equal(p.grad, gradients[name]) for name, p in ours.named_parameters())


def test_a_power_law_changes_the_loss_by_its_divergence():
    shared = {"loss.sinkhorn": "off"}
    plain = step(method(override(TINY, {**shared, "loss.prior": "uniform"})))
    steep = step(method(override(TINY, {**shared, "loss.exponent": 2.0})))
    assert torch.equal(plain["cross_entropy"], steep["cross_entropy"])
    assert steep["prior_divergence"] > plain["me_max"] + 0.1  # untrained assignments are nearly uniform
    torch.testing.assert_close(steep["loss"] - plain["loss"], steep["prior_divergence"] - plain["me_max"])


def test_a_warmed_up_prior_goes_from_uniform_to_its_own_by_the_steps_number():
    slow, own = method(override(TINY, {"loss.prior_warmup": 0.5})), method().prior
    terms = {}
    for when in (0, 2, 5, 9, 2):  # of 10 steps; back to 2, as a resumed run
        with torch.no_grad():
            terms.setdefault(when, []).append(slow(slow.views(batch(), when))["prior_divergence"].item())
    at_once = step(method())["prior_divergence"].item()
    uniform = step(method(override(TINY, {"loss.exponent": 0.0})))["me_max"].item()
    assert terms[0] == pytest.approx([uniform], abs=1e-6)
    assert terms[5] == terms[9] == [at_once]
    assert terms[2][0] == terms[2][1]
    assert uniform < terms[2][0] < at_once
    assert torch.equal(slow.prior, own)  # what is saved is the prior itself


def test_sinkhorn_is_off_uniform_or_matched_to_the_prior():
    matches = {
        kind: step(method(override(TINY, {"loss.sinkhorn": kind})))["cross_entropy"].item()
        for kind in ("off", "uniform", "prior")
    }
    assert len(set(matches.values())) == 3


def test_the_prior_is_a_float32_buffer_that_travels_with_the_weights_and_gets_no_gradient():
    model = method()
    assert model.state_dict()["prior"].dtype == torch.float32
    torch.testing.assert_close(model.prior.double(), priors.power_law(8, 1.0), rtol=0, atol=1e-7)
    assert "prior" not in dict(model.named_parameters())
    assert model.to("meta").prior.device.type == "meta"


@pytest.mark.parametrize("name", ["counts.txt", "counts.npy"])
def test_a_prior_from_a_file_is_its_proportions(tmp_path, name):
    path, counts = tmp_path / name, np.arange(8, 0, -1)
    np.save(path, counts) if path.suffix == ".npy" else path.write_text("\n".join(map(str, counts)))
    model = method(override(TINY, {"loss.prior": "file", "loss.prior_file": path}))
    torch.testing.assert_close(model.prior, torch.arange(8, 0, -1) / 36)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"is no file\. Give a text or \.npy file of 8 frequencies"),
        ("1 2 3", "has 3 numbers, but model.prototypes = 8"),
        ("1 2 0 1 1 1 1 1", r"prior\[2\] = 0; every entry must be above 0"),
        ("1 two", "holds no prior: could not convert string"),
    ],
)
def test_a_file_without_a_usable_prior_is_named_in_one_line(tmp_path, text, words):
    path = tmp_path / "prior.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words) as error:
        pmsn.RECIPE.run(override(FILED, {"loss.prior_file": path}), tmp_path / "run")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fate", ["gone", "of another length"])
def test_a_run_whose_prior_file_is_gone_goes_on_evaluates_and_exports_with_the_prior_in_its_weights(tmp_path, fate):
    path = tmp_path / "counts.txt"
    path.write_text("8 7 6 5 4 3 2 1")
    config = override(FILED, {"loss.prior_file": path, "train.steps": 2})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pmsn.RECIPE.run(config, whole)
    shutil.copytree(whole, stopped)
    for name in ("report.json", "model.safetensors"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "checkpoints" / "step-000002")
    (stopped / "state.json").write_text('{"status": "running", "step": 1}\n')
    path.write_text("1 2 3") if fate == "of another length" else path.unlink()

    assert runs.resume(pmsn.RECIPE, stopped).report["steps"] == 2  # from the checkpoint of step 1
    weights = [checkpoint.read_weights(folder / "model.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    torch.testing.assert_close(engine.reopen(pmsn.RECIPE, whole)[1].prior, torch.arange(8, 0, -1) / 36)
    assert runs.evaluate(pmsn.RECIPE, whole, ["knn"])["scores"]["knn"].keys() == {"method"}
    assert (runs.export(pmsn.RECIPE, whole, "timm", tmp_path / "out") / "model.safetensors").is_file()


def test_a_prior_file_without_end_is_refused_by_its_size(tmp_path):
    with (tmp_path / "prior.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"prior\.txt has 1,099,511,627,776 bytes\. Give a text or \.npy file of 8"):
        pmsn.RECIPE.run(override(FILED, {"loss.prior_file": tmp_path / "prior.txt"}), tmp_path / "run")


# the other objectives


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_reaches_all_that_it_trains_and_nothing_else(objective):
    model = method(override(TINY, {"loss.objective": objective}))
    parts = step(model)
    assert parts["loss"].isfinite()
    assert not any(value.requires_grad for name, value in parts.items() if name != "loss")
    trained = [p for group in model.param_groups() for p in group["params"]]
    assert all(p.grad is not None for p in trained)
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert (model.prototypes.weight.grad is not None) == (objective in ("msn", "swav"))
    assert all(p.grad is None for p in model.target.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_starts_from_the_same_weights_and_sees_the_same_views(objective):
    model, plain = method(override(TINY, {"loss.objective": objective})), method()
    mine, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    views = [each.views(batch(), step=3) for each in (model, plain)]
    assert all(torch.equal(views[0][name], views[1][name]) for name in ("target", "global", "keep"))


def test_small_views_go_into_swav_and_are_refused_by_objectives_of_two_views():
    small = {"views.local_views": 2, "views.local_size": 8}
    swav = method(override(TINY, {"loss.objective": "swav", **small}))
    assert step(swav)["loss"].isfinite()
    for objective in ("simclr", "vicreg"):
        words = rf"loss\.objective {objective} compares two views.*views\.local_views \(now 2\) to 0"
        with pytest.raises(ConfigError, match=words):
            override(TINY, {"loss.objective": objective, **small}).validate()


# configs


def test_the_paper_presets_are_msns_with_the_prior_of_the_paper_and_no_sinkhorn():
    for name in ("vits16_inat18", "vits16_places365_lt"):
        config, base = pmsn.PRESETS[name], msn.PRESETS["vits16_imagenet"]
        assert (config.loss.prior, config.loss.exponent, config.loss.me_max_weight) == ("power_law", 0.25, 1.0)
        assert (config.loss.direction, config.loss.sinkhorn) == ("forward", "off")
        for group in ("views", "model", "optim", "train"):
            assert getattr(config, group) == getattr(base, group)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.exponent": -1.0}, r"loss\.exponent = -1\.0 .*0 is uniform; lightly's default is 0\.25"),
        ({"loss.prior": "file"}, r"loss\.prior = file does not fit loss\.prior_file = None: give both"),
        ({"loss.prior_file": "p.txt"}, r"loss\.prior = power_law does not fit loss\.prior_file = p\.txt"),
        ({"loss.sinkhorn_iterations": 0}, r"sinkhorn_iterations = 0 leaves loss\.sinkhorn prior no round"),
        ({"loss.prior": "zipf"}, "zipf"),
    ],
)
def test_a_prior_that_does_not_fit_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ConfigError, match=words):
        override(TINY, changes).validate()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.sinkhorn": "uniform"}, "loss.sinkhorn = uniform and loss.prior = power_law pull apart"),
        ({"model.prototypes": 9, "loss.sinkhorn": "off"}, "8 anchors a micro-batch cannot match a prior over"),
        ({"model.prototypes": 9, "views.global_views": 2}, "8 targets a micro-batch cannot be balanced over"),
    ],
)
def test_what_may_not_be_meant_is_told_and_allowed(changes, words):
    config = override(TINY, changes)
    config.validate()
    (line,) = pmsn.cautions(config)
    assert line.startswith(words)


def test_a_run_opens_with_its_cautions(tmp_path, capsys):
    changes = {"train.steps": 1, "train.checkpoint_every": 1, "loss.sinkhorn": "uniform", "eval.probes": []}
    few = {"data.name": "digits", "data.train_size": 400, "data.test_size": 20, "eval.baselines": "none"}
    pmsn.RECIPE.run(override(TINY, {**changes, **few}), tmp_path / "run")
    assert "warning: loss.sinkhorn = uniform and loss.prior = power_law pull apart" in capsys.readouterr().err


# ranks


def losses_of_two_steps(place: str) -> dict[str, list[float]]:
    """Runs of two steps on all ranks, one an objective; every rank returns what was logged."""
    few = {"data.name": "digits", "data.train_size": 64, "data.tail": 0.0, "data.test_size": 20, "train.steps": 2}
    quiet = {"train.device": "cpu", "eval.probes": [], "eval.baselines": "none"}
    losses = {}
    for objective in ("msn", "simclr", "swav"):
        out = Path(place) / f"{objective}-{collectives.world_size()}"
        pmsn.RECIPE.run(override(TINY, {**few, **quiet, "loss.objective": objective}), out)
        losses[objective] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses


@pytest.mark.distributed
def test_two_ranks_take_the_steps_of_one(tmp_path):
    alone = losses_of_two_steps(str(tmp_path))
    for rank in run_ranks(losses_of_two_steps, 2, str(tmp_path)):
        for objective, losses in alone.items():
            assert rank[objective] == pytest.approx(losses, rel=1e-5), objective
