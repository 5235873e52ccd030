# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.config import override
from recipes_lib.errors import ConfigError
from recipes_lib.models.heads import MLPHead
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.knobs import study


def projector(layers: int, norm: str = "batch") -> MLPHead:
    torch.manual_seed(0)
    return MLPHead(8, 6, 4, layers=layers, norm=norm).eval()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_each_hidden_layer_is_probed_after_its_activation_and_the_last_is_the_projectors_output(norm):
    head, features = projector(3, norm), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    found = study.outputs(head, features)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "features": (5, 8),
        "hidden_1": (5, 6),
        "hidden_2": (5, 6),
        "embedding": (5, 4),
    }
    assert torch.equal(found["features"], features)
    assert torch.equal(found["embedding"], head(features))
    activation = torch.nn.ReLU() if norm == "batch" else torch.nn.GELU()
    block = head.layers[:2] if norm == "batch" else head.layers[:1]
    assert torch.equal(found["hidden_1"], activation(block(features)))


def test_without_a_projector_there_are_the_features_alone_and_a_linear_one_has_no_hidden_layer():
    features = torch.randn(5, 8)
    assert list(study.outputs(projector(0), features)) == ["features"]
    assert list(study.outputs(projector(1), features)) == ["features", "embedding"]


@pytest.mark.parametrize("method", ["simclr", "byol", "swav"])
def test_a_method_with_a_projector_can_be_probed(method):
    study.require_projector(families.PRESETS[f"{method}_toy"])


@pytest.mark.parametrize("method", ["mae", "rotation"])
def test_a_method_without_one_is_refused_with_those_that_have_one(method):
    with pytest.raises(ConfigError, match=f"loss.objective = {method} has no projector to probe: use one of simclr, "):
        study.require_projector(families.PRESETS[f"{method}_toy"])


def test_the_accuracy_at_the_features_is_that_of_the_runs_report(tmp_path):
    changes = {"train.steps": 2, "train.batch_size": 32, "data.train_size": 128, "data.test_size": 64}
    changes |= {"eval.baselines": "none", "eval.probes": ["knn"], "model.projector_layers": 3}
    report = families.RECIPE.run(override(families.PRESETS["toy"], changes), tmp_path / "run").report
    found = study.accuracies(tmp_path / "run")
    assert list(found) == ["features", "hidden_1", "hidden_2", "embedding"]
    assert found["features"] == report["scores"]["knn"]["method"]
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
