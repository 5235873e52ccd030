# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
import torch

from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.recipes.evaluation import study, traps, zoo
from recipes_lib.recipes.evaluation.claims import ACROSS, CHAPTER, FINETUNED, ON_TRANSFORMER
from recipes_lib.recipes.evaluation.ranking import ACCURACIES, LABEL_FREE

METRICS = (*LABEL_FREE, *ACCURACIES, "loss", "knn")


def rows(names, **own):
    """Networks whose every metric rises with k-NN, but for those of which less is better."""
    found = {}
    for place, name in enumerate(names):
        found[name] = {metric: 0.1 * place for metric in METRICS}
        found[name] |= {"loss": -place, "uniformity": -place, "alignment": -place, "alpha_req": 3 - 0.1 * place}
        found[name] |= own.get(name, {})
    return found


def assert_claims_can_be_read(arm, report):
    """Every metric of the claims about a measurement is a finite number of its report, as it is stored."""
    stored = json.loads(json.dumps(report))
    read = [m for claim in CHAPTER.claims for m in (claim.ours, claim.control) if m.arm == arm]
    assert read
    assert all(math.isfinite(metric.read(stored)) for metric in read)


@pytest.mark.parametrize("method", ["simclr", "vicreg", "lejepa"])
def test_the_runs_of_a_method_are_ranked_by_every_metric(method, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "within", lambda name, seed: asked.append((name, seed)) or rows("abcdefghi"))
    report = getattr(study, method)(2)
    assert asked == [(method, 2)]
    assert report["spearman"] == pytest.approx(dict.fromkeys((*LABEL_FREE, "loss", *ACCURACIES), 1.0))
    assert_claims_can_be_read(method, report)


def test_the_untrained_network_counts_only_where_it_is_named(monkeypatch):
    high = {"rankme": 99.0, "knn": -1.0}
    monkeypatch.setattr(zoo, "across", lambda seed: rows((*ACROSS, "untrained", "initial"), untrained=high))
    report = study.across(1)
    assert report["spearman"]["rankme"] == pytest.approx(1.0)
    assert report["with_untrained"]["rankme"] < 0.7
    assert (report["beaten"]["rankme"], report["beaten"]["knn"]) == (1.0, 0.0)
    assert report["beaten_by_rotation"]["rotation"] == ACROSS.index("rotation") / (len(ACROSS) - 1)
    assert "loss" not in report["spearman"]  # the losses of two methods cannot be compared
    assert_claims_can_be_read("across", report)


def test_the_mistakes_are_measured_on_one_network(tiny):
    report = study.mistakes(1)
    assert set(report["knn"]) == {"cosine", "product", "distance", "augmented", "sides"}
    assert report["knn"]["sides"]["32"] == report["knn"]["cosine"]  # the side that it was trained at
    assert report["noise"]["rankme"] > report["network"]["rankme"]
    assert report["settings"] == len(traps.TREATMENTS) * len(traps.SETTINGS)
    assert set(report["optimism"]) == {"20", "100"}
    assert report["initial"] != report["estimated"]
    assert_claims_can_be_read("mistakes", report)


def test_fine_tuned_networks_stand_beside_the_frozen_ones(tiny, monkeypatch):
    monkeypatch.setattr(study, "FINETUNED", ("simclr", "byol", "untrained"))
    report = study.finetuning(1)
    assert list(report["rows"]) == ["simclr", "byol", "untrained"]
    values = [report["rows"][name]["knn"] for name in ("simclr", "byol")]
    assert report["range"]["knn"] == max(values) - min(values)
    assert_claims_can_be_read("finetuning", report)
    assert set(FINETUNED) - {"untrained"} <= set(ACROSS)


def test_the_dense_probe_compares_transformers_with_pixels_and_with_the_place_alone(tiny):
    report = study.dense_probes(1)
    assert list(report["rows"]) == [*ON_TRANSFORMER, "pixels", "place"]
    assert all(0 <= row["mean_iou"] <= row["token_accuracy"] <= 1 for row in report["rows"].values())
    assert_claims_can_be_read("dense_probes", report)


def test_the_transformers_of_the_dense_probe_differ_in_the_method_alone():
    configs = {name: study.transformer_config(name, 1) for name in ON_TRANSFORMER}
    networks = {(c.model.arch, c.model.patch_size, c.model.pool, c.model.stem) for c in configs.values()}
    assert networks == {("vit_pico", 8, "mean", "patch")}
    assert {name: c.loss.objective for name, c in configs.items()} == {
        "untrained": "mae",
        "simclr": "simclr",
        "mae": "mae",
    }


def test_the_held_out_images_are_no_neighbours_of_the_bank(monkeypatch):
    """If they were, one neighbour would always be right for them, and the choice would always fall on k = 1."""
    monkeypatch.setattr(traps, "SETTINGS", ((1, 0.07),))
    monkeypatch.setattr(traps, "SMALL_SETS", (40,))
    seen = {}
    monkeypatch.setattr(traps, "optimism", lambda on_test, held, **_: seen.update(test=on_test, held=held) or {})
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(1))
    study.optimism(features, labels, features[:100], labels[:100], 0)
    assert seen["held"].shape == (3, 60)
    assert seen["held"].double().mean() < 0.5
    assert weighted_knn(features, labels, features[:100], labels[:100], k=1) == 1.0
