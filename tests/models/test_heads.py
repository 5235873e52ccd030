# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from recipes_lib.models.heads import MLPHead, Predictor, ProjectionHead, Prototypes


@pytest.mark.parametrize(("name", "activation"), [("gelu", F.gelu), ("relu", F.relu)])
def test_projection_head_is_linear_norm_activation_twice_then_linear(name, activation):
    torch.manual_seed(0)
    head, features = ProjectionHead(6, 10, 4, activation=name).eval(), torch.randn(5, 6)
    for norm in (head.bn1, head.bn2):
        norm.running_mean.uniform_(-0.1, 0.1)
    hidden = activation((features @ head.fc1.weight.T - head.bn1.running_mean) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(head.first_layer(features), hidden)
    hidden = activation((hidden @ head.fc2.weight.T - head.bn2.running_mean) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(head(features), hidden @ head.fc3.weight.T)


def test_projection_head_has_gelu_as_msn_unless_told_otherwise():
    torch.manual_seed(0)
    head, features = ProjectionHead(6, 10, 4).eval(), torch.randn(5, 6)
    gelu = ProjectionHead(6, 10, 4, activation="gelu").eval()
    gelu.load_state_dict(head.state_dict())
    assert torch.equal(head(features), gelu(features))


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


def kinds(head: MLPHead) -> list[str]:
    return [type(layer).__name__ for layer in head.layers]


def test_an_mlp_head_is_linear_norm_relu_for_each_hidden_layer_then_linear():
    torch.manual_seed(0)
    head, features = MLPHead(6, 10, 4, layers=3), torch.randn(5, 6)
    hidden = ["Linear", "CrossRankBatchNorm", "ReLU"]
    assert kinds(head) == [*hidden, *hidden, "Linear"]
    first, second, last = (layer for layer in head.layers if isinstance(layer, torch.nn.Linear))
    assert [first.weight.shape, second.weight.shape, last.weight.shape] == [(10, 6), (10, 10), (4, 10)]
    assert (first.bias, second.bias) == (None, None)  # a batch norm would take it away
    x = F.relu(F.batch_norm(features @ first.weight.T, None, None, training=True))
    x = F.relu(F.batch_norm(x @ second.weight.T, None, None, training=True))
    torch.testing.assert_close(head(features), x @ last.weight.T + last.bias)
    assert head.out_dim == 4


def test_an_mlp_head_without_norm_has_gelu_and_biases():
    torch.manual_seed(0)
    head, features = MLPHead(6, 10, 4, layers=2, norm="none"), torch.randn(5, 6)
    assert kinds(head) == ["Linear", "GELU", "Linear"]
    first, _, last = head.layers
    torch.testing.assert_close(
        head(features), F.gelu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    )


def test_the_last_norm_of_an_mlp_head_has_no_learned_scale_and_no_bias_before_it():
    torch.manual_seed(0)
    head, features = MLPHead(6, 10, 4, layers=1, last_norm=True), torch.randn(5, 6)
    assert kinds(head) == ["Linear", "CrossRankBatchNorm"]
    assert [name for name, _ in head.named_parameters()] == ["layers.0.weight"]
    want = F.batch_norm(features @ head.layers[0].weight.T, None, None, training=True)
    torch.testing.assert_close(head(features), want)


def test_an_mlp_head_of_one_layer_is_linear_and_of_none_is_the_identity():
    assert kinds(MLPHead(6, 10, 4, layers=1)) == ["Linear"]
    none, features = MLPHead(6, 10, 4, layers=0, last_norm=True), torch.randn(5, 6)
    assert none(features) is features
    assert none.out_dim == 6


def test_predictor_is_norm_linear_norm_relu_linear_with_a_quarter_of_the_width_between():
    torch.manual_seed(0)
    predictor, embeddings = Predictor(8), torch.randn(16, 8) * 3 + 1
    assert [predictor.fc1.out_features, predictor.fc2.in_features, predictor.fc2.out_features] == [2, 2, 8]
    hidden = F.batch_norm(embeddings, None, None, training=True) @ predictor.fc1.weight.T
    hidden = F.relu(F.batch_norm(hidden, None, None, training=True))
    torch.testing.assert_close(predictor(embeddings), hidden @ predictor.fc2.weight.T)
    with pytest.raises(ValueError, match="dim = 6; a predictor's must be a multiple of 4"):
        Predictor(6)


def test_prototypes_are_uniform_and_their_logits_are_cosines_over_the_temperature():
    torch.manual_seed(0)
    prototypes, embeddings = Prototypes(200, 16), torch.randn(5, 16)
    assert prototypes.weight.abs().max() <= 0.25  # 1/sqrt(16)
    assert prototypes.weight.std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.05)
    before = prototypes.weight.clone()
    want = F.cosine_similarity(embeddings[:, None], prototypes.weight[None], dim=2) / 0.1
    torch.testing.assert_close(prototypes(embeddings, 0.1), want)
    assert torch.equal(prototypes.weight, before)  # never normalised in place
