# SPDX-License-Identifier: Apache-2.0
"""What a run folder gives back, and what a run does not wait for its end to find out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes_lib.config import override
from recipes_lib.errors import DataError, RunError
from recipes_lib.recipes import msn, pretraining
from recipes_lib.training import checkpoint

TINY = override(
    msn.PRESETS["toy"],
    {
        "data.name": "digits",
        "data.train_size": 40,
        "data.test_size": 16,
        "model.hidden": 16,
        "model.dim": 8,
        "model.prototypes": 4,
        "train.batch_size": 8,
        "train.steps": 1,
        "eval.probes": [],
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that asked for no probe, with baselines ``all`` and a list of labelled images that is missing."""
    config = override(TINY, {"eval.baselines": "all", "data.labelled": "nowhere.txt"})
    return msn.run(config, tmp_path_factory.mktemp("runs") / "run").folder


def test_without_a_probe_no_baseline_is_trained_and_no_label_looked_up(run):
    report = json.loads((run / "report.json").read_text())
    assert (report["scores"], report["spread"]) == ({}, {"method": {}})


def test_images_without_labels_are_trained_on_where_no_probe_is_asked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images)
    config = override(TINY, {"data.name": "npz", "data.root": tmp_path / "images.npz"})
    result = msn.run(config, tmp_path / "run")
    assert result.report["scores"] == {}
    with pytest.raises(DataError, match=r"no labels, .* --eval\.probes with no name"):
        pretraining.evaluate(result.folder, ["knn"])


def test_a_probe_that_needs_no_named_images_does_not_look_them_up(run):
    assert pretraining.evaluate(run, ["knn"])["scores"]["knn"].keys() == {"method"}
    with pytest.raises(DataError, match=r"data\.labelled = nowhere\.txt"):
        pretraining.evaluate(run, ["lowshot"])


@pytest.mark.parametrize(
    ("was", "now", "fault"),
    [
        ("recipe: msn", "recipe: mns", "There is no recipe 'mns'"),
        ("steps: 1", "steps: one", '"train.steps"'),
        ("steps: 1", "stepz: 1", '"stepz"'),
    ],
)
def test_a_config_that_was_edited_is_named_with_its_fault(run, tmp_path, was, now, fault):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace(was, now))
    for act in (pretraining.resume, pretraining.reopen):
        with pytest.raises(RunError, match=rf"config\.yaml: .*{fault}"):
            act(tmp_path)


def test_weights_of_another_network_are_refused_in_one_line(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    weights = checkpoint.read_weights(run / "model.safetensors")
    for other, reason in [
        ({"a": torch.zeros(1)}, "The keys of the weights in .* do not fit: missing"),
        ({**weights, "prototypes.weight": torch.zeros(5, 8)}, "The sizes of the weights in .* size mismatch"),
    ]:
        checkpoint.write_weights(tmp_path / "model.safetensors", other)
        with pytest.raises(RunError, match=reason) as caught:
            pretraining.reopen(tmp_path)
        assert "\n" not in str(caught.value)


def test_labels_that_are_missing_leave_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"eval\.neighbours = 41"):
        msn.run(override(TINY, {"eval.probes": ["knn"], "eval.neighbours": 41}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
