# SPDX-License-Identifier: Apache-2.0
"""What the Sieve chapter measures, on a pool of a few pairs."""

import numpy as np
import pytest

from recipes_lib.pretraining import engine

pytest.importorskip("pyarrow")

from recipes_lib.config import override
from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.sieve import models, study
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.recipes.sieve.pool import pantry_pool

SMALL = {
    "data.pool_size": 64,
    "data.per_shard": 32,
    "captioner.images": 32,
    "captioner.steps": 2,
    "captioner.max_length": 6,
    "clip.images": 256,
    "clip.steps": 1,
}


@pytest.fixture
def small(monkeypatch, sentence_encoder):
    """Every size is cut."""
    config_of, training = study.config_of, study._training

    def shorter(config: sieve.Config, subset) -> clip.Config:
        changes = {"train.steps": 1, "train.checkpoint_every": 1, "train.batch_size": 16, "data.test_size": 16}
        return override(training(config, subset), changes)

    monkeypatch.setattr(study, "config_of", lambda seed: override(config_of(seed), SMALL))
    monkeypatch.setattr(study, "_training", shorter)


def test_a_seeds_report_has_every_figure_that_the_claims_read(small):
    report = study.measure(0)
    kinds = {"all", *alt_text.KINDS}
    assert set(report["auc"]) == {"sieve", "clip", "fused", "with_phrases", "better"}
    assert all(set(aucs) <= kinds for aucs in report["auc"].values())
    assert report["captions"]["8"] == pytest.approx(report["auc"]["sieve"]["all"], abs=1e-6)
    assert set(report["captions"]) == {"1", "2", "4", "8"}
    assert report["gains"]["1_to_2"] == pytest.approx(report["captions"]["2"] - report["captions"]["1"])
    better = report["auc"]["better"]
    assert better == {kind: max(report["auc"][name][kind] for name in ("sieve", "clip")) for kind in better}
    assert set(report["recall"]) == set(report["zero_shot"]) == {"all", "random", "sieve", "clip", "fused"}
    assert set(report["kept"]) == {"random", "sieve", "clip", "fused"}
    assert set(report["models"]) == {"zero_shot", "ir5", "captioner"}


def test_the_clean_clip_learns_from_the_captioners_pairs_and_scores_the_same_pool(small, monkeypatch):
    trained = []
    pretrain = engine.pretrain
    monkeypatch.setattr(engine, "pretrain", lambda recipe, *given: trained.append(given[0]) or pretrain(recipe, *given))
    report = study.measure_clean_clip(0)
    assert set(report["auc"]["clip"]) <= {"all", *alt_text.KINDS}
    config = study.config_of(0)
    noisy = models.toy_clip(config)
    own = {"data.texts": "captions", "data.draw": models.captioners_draw(config)}
    assert trained == [override(noisy, own)]  # all else is as for the CLIP that learns from a web


def test_seeds_have_pools_of_their_own_none_of_which_is_the_toys():
    configs = [study.config_of(seed) for seed in range(3)]
    draws = [config.data.draw for config in configs]
    assert len({*draws, sieve.PRESETS["toy"].data.draw}) == 4
    assert [config.score.seed for config in configs] == [0, 1, 2]
    for config in configs:
        config.validate()


def test_every_clip_is_trained_on_the_pool_that_was_scored_for_as_many_steps(tmp_path):
    config = study.config_of(1)
    whole, pruned = (study._training(config, subset) for subset in (None, tmp_path / "subset.npy"))
    assert override(pruned, {"data.subset": None}) == whole
    assert (whole.train.steps, whole.train.seed) == (study.STEPS, 1)
    small = override(config, {"data.pool_size": 20})
    data = study._training(small, None).data
    own = alt_text.pool(data.train_size, size=data.image_size, seed=data.draw, mix=alt_text.Mix())
    assert own.uids == pantry_pool(small.data).uids
    assert own.texts == pantry_pool(small.data).texts


def test_a_captioner_is_right_where_it_names_the_class():
    pool = alt_text.pool(3, size=32, seed=0, mix=alt_text.CLEAN)
    own = [pool.class_names[label] for label in pool.labels.tolist()]
    captions = [[f"a red {own[0]}", "a thing"], [f"a {own[1]}", f"the {own[1]}"], ["nothing", ""]]
    scores = Scores(list(pool.uids), ["a", "b", "c"], list(pool.texts), captions, np.zeros(3, np.float32))
    assert study.names_class(scores, pool) == 0.5
