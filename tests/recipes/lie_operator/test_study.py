# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import objects3d, posed
from recipes_lib.models import packaged
from recipes_lib.recipes.lie_operator import learned, study
from recipes_lib.recipes.lie_operator.learned import Learning
from recipes_lib.recipes.lie_operator.protocol import Embedded

SHORT = Learning(generators=2, hidden=8, steps=4)


def test_true_generator_is_three_planes_with_their_speeds():
    found = study.true_generator(3)
    torch.testing.assert_close(found, -found.T, atol=1e-6, rtol=0)
    speeds = torch.linalg.eigvals(found).imag.sort().values
    torch.testing.assert_close(speeds, torch.tensor([-2.0, -1, -1, 0, 0, 1, 1, 2]), atol=1e-5, rtol=0)
    assert not torch.equal(found, study.true_generator(4))


def test_the_true_operator_transfers_once_and_twice_up_to_noise():
    truth = study.true_generator(0)
    operator = learned.LieOperator(8, 1)
    operator.weight.data = truth[None, None] / 2  # W - W^T = L
    scale = truth.norm() / 8**0.5  # unit_norm divides by it

    def infer(start, end):
        """The angle that fits best, found by trying many."""
        tried = torch.linspace(-0.8, 0.8, 801)
        ends = torch.linalg.matrix_exp(tried[:, None, None] * truth) @ start.T  # [801, 8, n]
        return (tried[(ends - end.T).square().sum(dim=1).argmin(dim=0)] * scale)[:, None]

    known, fresh = torch.randn(2, 500, 8, generator=torch.Generator().manual_seed(1))
    found = study.transferred(learned.Learned(infer, operator, 0.0), known[:50], fresh, truth, 0)
    assert found["once"] < 0.01
    assert found["twice"] < 0.01
    assert found["cosine"] == pytest.approx(1, abs=1e-5)


def test_every_arm_is_scored_on_the_same_features():
    rows = torch.randn(14, 5, 40, generator=torch.Generator().manual_seed(0))
    found = study.compare(Embedded(rows[:8], 5, rows[5:8], rows[8:]), {"lie": SHORT}, seed=0)
    assert list(found) == ["still", "positives", "lie"]
    assert found["still"].keys() == {"new_poses", "unknown"}
    assert found["lie"].keys() == {"new_poses", "unknown", "relative_error", "relative_error_in_training"}


def test_report_of_the_known_generator_has_every_arm(monkeypatch):
    monkeypatch.setattr(study, "ON_KNOWN", Learning(generators=1, hidden=8, steps=4))
    monkeypatch.setattr(study, "STARTS", 1)
    found = study.known_generator(0)
    assert list(found) == ["lie", "mlp", "random", "pair_input"]
    assert found["lie"].keys() == {"once", "twice", "cosine", "training", "stuck"}
    assert "cosine" not in found["mlp"]


@pytest.mark.skipif(bool(objects3d.missing() or packaged.missing()), reason="needs the extra objects")
def test_features_of_objects_are_instances_by_poses(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path))
    counts = posed.PoseCounts(diverse=2, typical=2, unknown=2, poses=2)
    found = study.features(0, counts)
    assert list(found.train.shape) == [4, 2, 1280]
    assert torch.equal(found.unknown, study.features(0, counts).unknown)  # from the cache


def test_fingerprint_is_the_same_at_every_call():
    found = study.fingerprint()
    assert found == study.fingerprint()
    assert len(found["errors"]) == 2
