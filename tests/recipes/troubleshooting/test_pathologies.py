# SPDX-License-Identifier: Apache-2.0
"""What takes a few steps is produced here. The collapses are in ``test_recipe.py``, two processes in ``tests/pretraining``."""

import pytest
import torch

from recipes_lib.config import dotted, override, to_dict
from recipes_lib.data.load import load
from recipes_lib.distributed import batch_norm
from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.pretraining import doctor, two_ranks
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.troubleshooting import pathologies
from recipes_lib.recipes.troubleshooting.pathologies import PATHOLOGIES, produce, recipe_of, write_images

BRIEF = {
    "train.steps": 60,
    "train.checkpoint_every": 60,
    "data.train_size": 300,
    "train.batch_size": 16,
    "eval.watch": [],
}
"""A teacher's memory is compared with the length of the run, so that these need some steps."""
QUICK = {
    "nan": {},
    "slow_teacher": BRIEF,
    "copied_teacher": BRIEF,
    "endless_warmup": BRIEF | {"train.steps": 12},
    "few_images": BRIEF | {"train.steps": 2, "train.batch_size": 64, "optim.warmup_steps": 1},
    "slow_input": {},
    "leaky_labels": {},
}
"""Name -> what makes it shorter still."""


@pytest.mark.parametrize("name", PATHOLOGIES)
def test_a_pathology_is_a_config_that_runs_and_differs_from_the_healthy_one_in_its_fault_alone(name, tmp_path):
    each = PATHOLOGIES[name]
    broken, healthy = (each.config(tmp_path, broken=kind) for kind in (True, False))
    for config in (broken, healthy):
        config.validate()
    fields, others = (dotted(to_dict(config)) for config in (broken, healthy))
    of_files = {"data.name", "data.root"} if each.files == "large" else set()
    assert {field for field in fields if fields[field] != others[field]} == set(each.changes) | of_files
    assert each.check in (*doctor.FROM_LOG, *doctor.FROM_WEIGHTS, two_ranks.NAME)
    assert bool(each.changes) + bool(each.files) + bool(each.method) == 1


def statuses(name, place, *, broken):
    _, findings = produce(name, place, broken=broken, also=QUICK[name])
    return {finding.check: finding.status for finding in findings}


@pytest.mark.parametrize("name", QUICK)
def test_the_doctor_finds_it(name, tmp_path):
    assert statuses(name, tmp_path, broken=True)[PATHOLOGIES[name].check] == "found"


@pytest.mark.parametrize("name", ["slow_teacher", "endless_warmup", "few_images", "slow_input", "leaky_labels"])
def test_the_doctor_finds_nothing_in_the_run_beside_it(name, tmp_path):
    found = statuses(name, tmp_path, broken=False)
    assert found[PATHOLOGIES[name].check] == "healthy"
    alarms = {check for check, status in found.items() if status == "found"}
    # a network this small waits for image files of any size
    assert alarms <= ({"slow_input"} if name == "leaky_labels" else set())


def test_a_finished_run_is_not_repeated(tmp_path):
    out, _ = produce("few_images", tmp_path, also=QUICK["few_images"])
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    assert produce("few_images", tmp_path, also=QUICK["few_images"])[0] == out
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_that_diverged_diverges_again(tmp_path):
    for _ in range(2):
        _, findings = produce("nan", tmp_path)
        assert findings[0].status == "found"


def test_on_one_process_a_gather_without_gradient_does_no_harm():
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = [[view.clone().requires_grad_() for view in (first, second)] for _ in range(2)]
    losses = [pathologies.without_gradient(*leaves[0], temperature=0.2), nt_xent(*leaves[1], temperature=0.2)]
    for loss in losses:
        loss["loss"].backward()
    torch.testing.assert_close(losses[0]["loss"].double(), losses[1]["loss"], rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_broken_method_stands_in_for_the_families_only_in_the_broken_run(tmp_path):
    assert recipe_of("plain_gather", broken=True).method is pathologies.PlainGather
    assert recipe_of("plain_gather", broken=False) is recipe_of("no_negatives", broken=True) is families.RECIPE
    config = PATHOLOGIES["local_batch_norm"].config(tmp_path)
    crossing = [isinstance(part, batch_norm.CrossRankBatchNorm) for part in families.build(config, 1).modules()]
    apart = [
        isinstance(part, batch_norm.CrossRankBatchNorm) for part in pathologies.LocalBatchNorm(config, 1).modules()
    ]
    assert sum(apart) < sum(crossing)


def test_the_share_of_leaked_files_is_the_share_asked_for_and_files_of_training_alone_are_enlarged(tmp_path):
    write_images(tmp_path / "clean", 40, train_size=60, test_size=40)
    write_images(tmp_path / "leaky", 16, train_size=60, test_size=40, leaked=0.25)
    config = {"data.name": "imagenet", "data.image_size": 16}
    clean, leaky = (
        load(override(families.PRESETS["toy"], {**config, "data.root": tmp_path / name}).data, DATA_SEED)
        for name in ("clean", "leaky")
    )
    assert (len(leaky.train), len(leaky.test), doctor._leak(leaky).number) == (60, 40, 0.25)
    assert doctor._leak(clean).number == 0
    assert {clean.train.open(index).size for index in range(60)} == {(40, 40)}
    assert {clean.test.open(index).size for index in range(40)} == {(16, 16)}
