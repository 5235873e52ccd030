# SPDX-License-Identifier: Apache-2.0
import pytest

from recipes_lib.recipes.natural_variation import study


def test_claims_read_the_metrics_of_pose_and_of_every_factor():
    shares = {"0": (0.2, 0.9), "50": (0.5, 0.8), "100": (0.6, 0.7)}
    report = {
        "models": {"net": {"canonical": 0.9, "gaps": {"size": {"accuracy": 0.4, "worst_case": 0.1}}}},
        "diversity": {"net": {"pose": {share: {"varied": a, "canonical": b} for share, (a, b) in shares.items()}}},
        "transfer": {"net": {"pose": {"seen": 0.8, "unseen": 0.1, "draws": [], "similarity": {"features": 0.3}}}},
        "twins": {"net": {"pose": {"with_twin": 0.3, "without": 0.1, "draws": []}}},
    }
    found = study.metrics(report, "net")
    assert found["gain"] == {"first_half": pytest.approx(0.3), "second_half": pytest.approx(0.1), "none": 0.0}
    assert found["accuracy"] == {"size": 0.4}
    assert found["transfer"] == {"seen": 0.8, "unseen": 0.1}
    assert found["twins"] == {"with_twin": 0.3, "without": 0.1}
    assert found["canonical_at"]["100"] == 0.7


@pytest.mark.parametrize("config", [study.PRETRAINED, study.TRAINED, study.SHARED])
def test_every_study_is_a_valid_config(config):
    config.validate()


def test_the_studies_have_near_twins_and_enough_draws():
    for config in (study.PRETRAINED, study.TRAINED):
        assert config.transfer.twins
        assert config.transfer.draws >= 5
