# SPDX-License-Identifier: Apache-2.0
"""Those that take a few steps are produced here; the collapses, which take 150, in ``tests/pretraining/test_doctor.py``."""

import pytest

from recipes_lib.pretraining import doctor
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.troubleshooting.pathologies import PATHOLOGIES, produce

QUICK = [name for name, each in PATHOLOGIES.items() if each.length or name == "nan"]


@pytest.mark.parametrize("name", PATHOLOGIES)
def test_each_pathology_is_a_config_that_runs_and_differs_from_the_healthy_one_in_its_changes_alone(name):
    each = PATHOLOGIES[name]
    each.config().validate()
    each.config(broken=False).validate()
    assert each.config() != each.config(broken=False)
    assert each.check in (*doctor.FROM_LOG, *doctor.FROM_WEIGHTS)
    assert each.preset in families.PRESETS


@pytest.mark.parametrize("name", QUICK)
def test_the_doctor_finds_it_and_not_in_the_run_beside_it(name, tmp_path):
    each = PATHOLOGIES[name]
    found = {finding.check: finding.status for finding in produce(each, tmp_path / "broken")}
    assert found[each.check] == "found"
    if name != "nan":  # its healthy run has 150 steps, and test_doctor has one
        beside = {finding.check: finding.status for finding in produce(each, tmp_path / "healthy", broken=False)}
        assert beside[each.check] == "healthy"
