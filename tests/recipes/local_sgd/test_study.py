# SPDX-License-Identifier: Apache-2.0
"""What the local SGD chapter measures: many runs at once are the runs one by one, and every arm has the same chance."""

import json
from dataclasses import replace
from functools import reduce
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from recipes_lib.config import SyncConfig, override
from recipes_lib.data import embedded
from recipes_lib.data.load import load
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.recipes.local_sgd import study
from recipes_lib.recipes.local_sgd.claims import CHAPTER
from recipes_lib.recipes.local_sgd.study import RATES, Arm, Split
from recipes_lib.views.multicrop import eval_view

ARMS = list(study.arms())


def all_images(part: str) -> Split:
    found = getattr(load(study.TOY.data, DATA_SEED), part)
    return Split(eval_view(found.images, 8, "grey"), found.labels)


@pytest.mark.parametrize("sync", [{"name": "local_sgd", "period": 4}, {"name": "slowmo", "period": 4, "momentum": 0.6}])
def test_runs_trained_at_once_are_runs_of_the_recipe_at_their_rates_and_seeds(tmp_path, sync):
    arm = Arm(path="", scene="drawn", steps=10, sync=SyncConfig(**sync))
    trials = [(0.05, 3), (0.2, 4)]
    accuracies, sent = study.train(arm, arm.sync, all_images("train"), trials)
    found = accuracies(all_images("test"))
    for (rate, seed), ours in zip(trials, found.tolist(), strict=True):
        changes = {f"sync.{name}": value for name, value in sync.items()}
        changes |= {"optim.lr": rate, "train.seed": seed, "train.steps": 10, "eval.baselines": "none"}
        report = local_sgd.RECIPE.run(override(study.TOY, changes), tmp_path / str(seed)).report
        assert report["scores"]["accuracy"]["method"] == pytest.approx(ours, abs=1.5e-3)  # an image may flip
        assert report["sync"]["bytes"] == sent
    assert found[0] != found[1]


def test_every_arm_may_try_as_many_settings():
    for arm in ARMS:
        settings = arm.settings()
        assert sum(len(rates) for _, rates in settings) == len(RATES) == 10, arm.path
        assert len({(sync.momentum, rate) for sync, rates in settings for rate in rates}) == 10
    assert len({arm.path for arm in ARMS}) == len(ARMS)


def test_the_setting_that_is_best_on_the_validation_split_is_taken_and_the_test_is_not_looked_at(monkeypatch):
    place = study.scene("drawn")
    asked = []

    def train(arm, sync, split, trials):
        assert split is place.train

        def accuracies(judged):
            asked.append(judged)
            reached = [sync.momentum + (0.1 if rate == RATES[4] else 0) + 0.01 * (seed % 100) for rate, seed in trials]
            return torch.tensor(reached, dtype=torch.float64)

        return accuracies, 0.0

    monkeypatch.setattr(study, "train", train)
    slowmo = next(arm for arm in ARMS if arm.path == "drawn.48.slowmo.16")
    sync, rate, reached = study.tune(slowmo, seed=2)
    assert (sync.momentum, rate, reached) == (0.6, RATES[4], pytest.approx(0.705))
    assert all(judged is place.validation for judged in asked)


def test_validation_is_of_other_scans_and_the_scenes_differ_in_what_they_say():
    drawn, noisy, scans = (study.scene(name) for name in ("drawn", "noisy", "scans"))
    found = load(study.TOY.data, DATA_SEED).train.factors["scan"]
    assert len(drawn.validation.labels) == (found % 5 == 0).sum() == len(found) - len(drawn.train.labels)
    assert torch.equal(noisy.train.images, drawn.train.images)
    assert (noisy.train.labels != drawn.train.labels).float().mean().item() == pytest.approx(0.27, abs=0.02)
    assert torch.equal(noisy.validation.labels, drawn.validation.labels)
    assert [len(part.labels) for part in (scans.train, scans.validation, scans.test)] == [1037, 260, 500]
    rows = {tuple(row) for row in scans.test.images.flatten(1).tolist()}
    assert not rows & {tuple(row) for row in scans.train.images.flatten(1).tolist()}


def test_a_report_has_every_figure_that_the_claims_read(monkeypatch):
    short = [replace(arm, steps=2) for arm in ARMS]
    monkeypatch.setattr(study, "arms", lambda: iter(short))
    monkeypatch.setattr(study, "RATES", RATES[::4])
    report = study.measure(0)
    for claim in CHAPTER.claims:
        for metric in (claim.ours, claim.control):
            assert metric.read(report) == metric.read(report)  # it is there, and a number
    assert report["gap"]["48"]["1"] == 0
    assert report["chosen"]["drawn"]["48"]["slowmo"]["4"]["momentum"] in study.MOMENTA


def test_no_rate_that_a_claim_rests_on_lies_at_the_end_of_its_range():
    """Else the arm might have done better with a rate that it could not try."""
    stored = json.loads(embedded.path("claims/local_sgd.json").read_text())["figures"]["workers"]
    paths = {metric.path for claim in CHAPTER.claims for metric in (claim.ours, claim.control)}
    ranges = {arm.path: [rate for _, rates in arm.settings() for rate in rates] for arm in ARMS}
    read = [path for path in ranges if f"accuracy.{path}" in paths]
    assert len(read) >= 10
    for report, path in product(stored.values(), read):
        chosen = reduce(lambda place, key: place[key], path.split("."), report["chosen"])["lr"]
        assert min(ranges[path]) < chosen < max(ranges[path]), path


def test_the_runs_of_one_model_do_not_touch_each_other():
    runs = study.Runs(study.TOY, [0, 1])
    images = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = runs(images)
    for row, seed in enumerate([0, 1]):
        one = engine.build(local_sgd.RECIPE, override(study.TOY, {"train.seed": seed}), 1)
        torch.testing.assert_close(logits[row], one.classify(images[row]))
    F.cross_entropy(logits[0], torch.zeros(5, dtype=torch.int64)).backward()
    assert all(not weight.grad[1].any() for weight in runs.weights)
