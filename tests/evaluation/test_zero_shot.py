# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor

from recipes_lib.evaluation import zero_shot

VECTORS = {"x": [1.0, 0, 0], "far x": [5.0, 0, 0], "y": [0, 1.0, 0], "z": [0, 0, 1.0]}


def encode(texts: list[str]) -> Tensor:
    return torch.tensor([VECTORS[text] for text in texts])


def test_prompt_ensemble_has_the_golden_value():
    half = 0.7071067812
    weights = zero_shot.class_weights(encode, {"both": ["x", "y"]})
    torch.testing.assert_close(weights, torch.tensor([[half, half, 0]]))


def test_each_prompt_counts_the_same_whatever_its_length():
    weights = zero_shot.class_weights(encode, {"a": ["far x", "y"], "b": ["x", "y"]})
    torch.testing.assert_close(weights[0], weights[1])


def test_classes_keep_their_order_and_may_have_different_numbers_of_prompts():
    weights = zero_shot.class_weights(encode, {"b": ["z"], "a": ["x", "far x"], "c": ["y"]})
    torch.testing.assert_close(weights, torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]))


def test_chunks_change_nothing_and_bound_what_is_encoded_at_once():
    prompts = {"a": ["x", "y", "z"], "b": ["z", "far x"], "c": ["y"]}
    calls = []

    def counted(texts: list[str]) -> Tensor:
        calls.append(len(texts))
        return encode(texts)

    weights = zero_shot.class_weights(counted, prompts, chunk=2)
    assert calls == [2, 2, 2]
    torch.testing.assert_close(weights, zero_shot.class_weights(encode, prompts))


def test_an_image_belongs_to_the_class_of_highest_cosine_whatever_its_length():
    weights = torch.eye(3)
    features = torch.tensor([[0.1, 0.2, 0], [30.0, 2, 1], [0, 0, 1e-3]])
    assert zero_shot.predict(features, weights).tolist() == [1, 0, 2]
    assert zero_shot.predict(features, weights, chunk=2).tolist() == [1, 0, 2]


def test_accuracy_of_all_and_of_each_class():
    features = torch.eye(3)[[0, 0, 1, 0, 1]]
    result = zero_shot.accuracy(features, torch.eye(3), torch.tensor([0, 0, 0, 1, 1]))
    assert result.accuracy == pytest.approx(3 / 5)
    assert result.per_class[:2] == pytest.approx((2 / 3, 1 / 2))
    assert math.isnan(result.per_class[2])


def test_a_class_without_prompts_is_named():
    with pytest.raises(ValueError, match="no prompt for class 'mug', 'bowl'"):
        zero_shot.class_weights(encode, {"x": ["x"], "mug": [], "bowl": []})
    with pytest.raises(ValueError, match="there is no class"):
        zero_shot.class_weights(encode, {})


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "3 images and 2 labels"), ([0, 1, 3], "labels from 0 to 3, but there are 3 classes")],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        zero_shot.accuracy(torch.eye(3), torch.eye(3), torch.tensor(labels))


def test_no_images_have_no_accuracy():
    with pytest.raises(ValueError, match="0 images"):
        zero_shot.accuracy(torch.zeros(0, 3), torch.eye(3), torch.zeros(0, dtype=torch.int64))


def test_features_that_are_not_finite_have_no_accuracy():
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        zero_shot.accuracy(torch.eye(3) / 0, torch.eye(3), torch.tensor([0, 1, 2]))
