# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from recipes_lib.models.heads import ProjectionHead, Prototypes


def test_projection_head_is_linear_norm_gelu_twice_then_linear():
    torch.manual_seed(0)
    head, features = ProjectionHead(6, 10, 4).eval(), torch.randn(5, 6)
    for norm in (head.bn1, head.bn2):
        norm.running_mean.uniform_()
    hidden = F.gelu((features @ head.fc1.weight.T - head.bn1.running_mean) / math.sqrt(1 + 1e-5))
    hidden = F.gelu((hidden @ head.fc2.weight.T - head.bn2.running_mean) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(head(features), hidden @ head.fc3.weight.T)


def test_projection_head_bears_the_official_names():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = [f"{fc}.{kind}" for fc in ("fc1", "fc2", "fc3") for kind in ("weight", "bias")]
    names += [f"{bn}.{kind}" for bn in ("bn1", "bn2") for kind in norm]
    assert set(ProjectionHead(6, 10, 4).state_dict()) == set(names)


def test_projection_head_starts_with_the_papers_weights():
    torch.manual_seed(0)
    head = ProjectionHead(64, 256, 64)
    for layer in (head.fc1, head.fc2, head.fc3):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (layer.bias == 0).all()


def test_prototypes_are_uniform_and_their_logits_are_cosines_over_the_temperature():
    torch.manual_seed(0)
    prototypes, embeddings = Prototypes(200, 16), torch.randn(5, 16)
    assert prototypes.weight.abs().max() <= 0.25  # 1/sqrt(16)
    assert prototypes.weight.std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.05)
    before = prototypes.weight.clone()
    want = F.cosine_similarity(embeddings[:, None], prototypes.weight[None], dim=2) / 0.1
    torch.testing.assert_close(prototypes(embeddings, 0.1), want)
    assert torch.equal(prototypes.weight, before)  # never normalised in place
