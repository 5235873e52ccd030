# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.data import digits
from recipes_lib.data.images import UNLABELLED, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import StepBatches
from recipes_lib.models.wide_resnet import WideResNet
from recipes_lib.recipes.paws import pseudo_labels
from recipes_lib.recipes.paws.pseudo_labels import fixmatch_loss
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig

VIEWS = ViewsConfig(
    image_size=16, local_size=8, local_views=2, blur=0.0, rotate=10.0, noise=0.1, solarize=0.2, equalize=0.2
)

# Two labelled and three unlabelled images, three classes.
LABELLED = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
WEAK = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.9, 0.0], [-2.0, 0.0, 3.0]], dtype=torch.float64)
STRONG = torch.tensor([[1.0, 1.0, 0.0], [0.0, 5.0, 0.0], [0.0, 2.0, 1.0]], dtype=torch.float64)


def draw(seed: int, labelled: int = 3, images: int = 6, classes: int = 4) -> list[Tensor]:
    """Logits of labelled images, their labels, logits of weak and of strong views."""
    g = torch.Generator().manual_seed(seed)
    rows = [3 * torch.randn(n, classes, generator=g, dtype=torch.float64) for n in (labelled, images, images)]
    return [rows[0], torch.randint(classes, (labelled,), generator=g), *rows[1:]]


def by_numpy(
    logits: Tensor, labels: Tensor, weak: Tensor, strong: Tensor, threshold: float, weight: float
) -> dict[str, float]:
    """Equations 3 and 4 of the paper, image by image."""

    def softmax(row: np.ndarray) -> np.ndarray:
        return np.exp(row) / np.exp(row).sum()

    supervised = [-np.log(softmax(row)[label]) for row, label in zip(logits.numpy(), labels.numpy(), strict=True)]
    unsupervised, confident = 0.0, 0
    for q, p in zip(map(softmax, weak.numpy()), map(softmax, strong.numpy()), strict=True):
        if q.max() >= threshold:
            unsupervised -= np.log(p[q.argmax()])
            confident += 1
    mean = float(np.mean(supervised))
    return {
        "loss": mean + weight * unsupervised / len(weak),
        "supervised": mean,
        "unsupervised": unsupervised / len(weak),
        "confident": confident / len(weak),
    }


def few_labels(count: int = 60, labelled: int = 10) -> ImageSet:
    """Digits of 16 pixels of which the first have labels."""
    images = digits.dataset(count, size=16, seed=0, split="train")
    labels = torch.where(torch.arange(count) < labelled, images.labels, UNLABELLED)
    return replace(images, labels=labels)


def some_batches(count: int, train: ImageSet | None = None, **changes) -> list[pseudo_labels.Batch]:
    options = {"steps": count, "batch_size": 20, "labelled_size": 10, "seed": 0} | changes
    return list(pseudo_labels.draw_batches(few_labels() if train is None else train, VIEWS, **options))


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 16))


def train(net: nn.Module, batches: list[pseudo_labels.Batch], **changes) -> nn.Sequential:
    options = {"width": 16, "classes": 10, "steps": len(batches), "seed": 0} | changes
    return pseudo_labels.train(net, batches, **options)


# the loss


def test_the_loss_by_hand():
    # supervised: log(1 + e^-2 + e^-3) = .16984602, log(e^.5 + e + 1) = 1.68026966; weak: .9647, .4754, .9465 -> .9
    # strong against classes 0 and 2: log(2 + e^-1) = .86199480, log(1 + e^2 + e) - 1 = 1.40760596, over three images
    parts = fixmatch_loss(LABELLED, LABELS, WEAK, STRONG, threshold=0.9, weight=2.0)
    assert parts["supervised"].item() == pytest.approx((0.16984602 + 1.68026966) / 2, abs=1e-8)
    assert parts["unsupervised"].item() == pytest.approx((0.86199480 + 1.40760596) / 3, abs=1e-8)
    assert parts["confident"].item() == pytest.approx(2 / 3)
    assert parts["loss"].item() == pytest.approx(0.92505784 + 2 * 0.75653359, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("threshold", "weight"), [(0.95, 1.0), (0.6, 0.5), (0.0, 1.0), (1.0, 3.0)])
def test_the_loss_is_the_paper_s_equations_image_by_image(seed, threshold, weight):
    inputs = draw(seed)
    parts = fixmatch_loss(*inputs, threshold=threshold, weight=weight)
    expected = by_numpy(*inputs, threshold, weight)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, abs=1e-10), name


def test_the_threshold_is_095_and_the_weight_1_as_in_the_paper():
    inputs = draw(1)
    torch.testing.assert_close(fixmatch_loss(*inputs), fixmatch_loss(*inputs, threshold=0.95, weight=1.0))


def test_an_image_at_the_threshold_counts():
    even = torch.zeros(1, 2, dtype=torch.float64)  # each class has probability 1/2
    counted = fixmatch_loss(even, LABELS[:1], even, even, threshold=0.5)
    assert counted["confident"].item() == 1


def test_guesses_get_no_gradient_and_doubtful_images_give_none():
    labelled, weak, strong = (rows.clone().requires_grad_() for rows in (LABELLED, WEAK, STRONG))
    fixmatch_loss(labelled, LABELS, weak, strong, threshold=0.9)["loss"].backward()
    assert weak.grad is None
    assert torch.equal(strong.grad[1], torch.zeros(3, dtype=torch.float64))
    assert strong.grad[[0, 2]].abs().min() > 0
    assert labelled.grad.abs().min() > 0


def test_the_gradient_is_that_of_the_loss():
    labelled, labels, weak, strong = draw(2)

    def loss(logits: Tensor, others: Tensor) -> Tensor:
        return fixmatch_loss(logits, labels, weak, others, threshold=0.6, weight=0.7)["loss"]

    assert torch.autograd.gradcheck(loss, (labelled.requires_grad_(), strong.requires_grad_()))


def test_parts_are_detached_and_half_precision_is_raised():
    labelled, labels, weak, strong = draw(3)
    parts = fixmatch_loss(labelled.bfloat16().requires_grad_(), labels, weak.bfloat16(), strong.bfloat16())
    assert [name for name, part in parts.items() if part.requires_grad] == ["loss"]
    assert {part.dtype for part in parts.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"threshold": float("nan")}, "threshold = nan"),
        ({"weight": -1.0}, "weight = -1.0"),
        ({"logits_strong": STRONG[:2]}, r"strong \[2, 3\]"),
        ({"logits_labelled": LABELLED[:, :2]}, r"labelled \[2, 2\]"),
        ({"labels": LABELS[:1]}, "with 1 labels"),
        ({"labels": torch.tensor([0, UNLABELLED])}, "1 of 2 labelled images have no label"),
        ({"logits_weak": WEAK[:0], "logits_strong": STRONG[:0]}, "0 unlabelled"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    inputs = {"logits_labelled": LABELLED, "labels": LABELS, "logits_weak": WEAK, "logits_strong": STRONG}
    with pytest.raises(ValueError, match=words):
        fixmatch_loss(**(inputs | changes))


# the batches


def test_the_strong_view_is_the_first_large_one_that_a_recipe_cuts():
    images = few_labels()
    recipe, order = MultiCrop(VIEWS, seed=4), StepBatches(images, seed=4, batch_size=20)
    for step, batch in enumerate(some_batches(4, images, seed=4)):  # 3 steps an epoch
        torch.testing.assert_close(batch.strong, recipe(order[step])[0])


def test_weak_views_are_cut_and_mirrored_only():
    plain = replace(few_labels(), images=torch.full((60, 3, 16, 16), 204, dtype=torch.uint8))
    (batch,) = some_batches(1, plain)
    normal = (0.8 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    for views in (batch.weak, batch.labelled):
        torch.testing.assert_close(views, normal.view(1, 3, 1, 1).expand_as(views))
    assert (batch.strong - batch.weak).abs().max() > 0.1


def test_hidden_labels_are_not_used():
    for batch in some_batches(5):
        assert sorted(batch.labels.tolist()) == sorted(few_labels().labels[:10].tolist())


def test_few_labelled_images_fill_a_batch_evenly_each_time_as_another_view():
    batches = some_batches(2, few_labels(labelled=5), labelled_size=10)
    for batch in batches:
        assert sorted(batch.labels.tolist()) == sorted(2 * few_labels().labels[:5].tolist())
        assert len(batch.labelled.flatten(1).unique(dim=0)) == 10
    assert not torch.equal(batches[0].labels, batches[1].labels)


def test_batches_are_the_same_every_time_and_differ_between_seeds():
    first, second, other = some_batches(2), some_batches(2), some_batches(2, seed=1)
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    assert not torch.equal(first[0].weak, other[0].weak)


@pytest.mark.parametrize("labels", [None, torch.full((60,), UNLABELLED)])
def test_images_without_any_label_are_refused(labels):
    with pytest.raises(ValueError, match="none of 60 images has a label"):
        some_batches(1, replace(few_labels(), labels=labels))


# training


def test_one_update_is_that_of_the_loss_on_all_views_together():
    (batch,) = some_batches(1)
    net, seen = nn.Sequential(small_net(), nn.BatchNorm1d(16)), []
    train(net, [batch], threshold=0.1, weight=0.5, progress=lambda step, classifier, metrics: seen.append(metrics))
    backbone = nn.Sequential(small_net(), nn.BatchNorm1d(16))
    features = backbone(torch.cat([batch.labelled, batch.weak, batch.strong]))
    fresh = train(nn.Sequential(small_net(), nn.BatchNorm1d(16)), [batch], lr=0.0)  # its head as drawn
    labelled, weak, strong = fresh[1](features).split([10, 20, 20])
    expected = fixmatch_loss(labelled, batch.labels, weak, strong, threshold=0.1, weight=0.5)
    assert seen[0] == pytest.approx({name: part.item() for name, part in expected.items()}, rel=1e-5)


def test_the_classifier_learns_its_labels_and_grows_confident():
    seen = []
    batches = 10 * some_batches(4, few_labels(labelled=20))
    train(small_net(), batches, lr=1e-2, threshold=0.7, progress=lambda *step: seen.append(step[2]))
    assert seen[0]["supervised"] == pytest.approx(2.30, abs=0.15)  # log 10: the head starts near even
    assert seen[0]["confident"] == 0
    assert np.mean([metrics["supervised"] for metrics in seen[-10:]]) < 0.8
    assert np.mean([metrics["confident"] for metrics in seen[-10:]]) > 0.2


def test_training_is_the_same_every_time_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, second = train(small_net(), some_batches(3)), train(small_net(), some_batches(3))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_learning_rate_ends_near_zero():
    weights = []
    train(small_net(), 20 * some_batches(1), progress=lambda *step: weights.append(step[1][1].weight.detach().clone()))
    moves = [(after - before).abs().max() for before, after in pairwise(weights)]
    assert moves[-1] < 0.02 * max(moves)


def test_batches_that_end_early_are_refused():
    with pytest.raises(ValueError, match="ended after 3 of 5 steps"):
        train(small_net(), some_batches(3), steps=5)


# accuracy over updates


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WideResNet(depth=10, width=1)


def curve(every: int) -> list[tuple[int, float]]:
    images = Splits(few_labels(), digits.dataset(30, size=16, seed=0, split="test"))
    options = {"steps": 5, "batch_size": 10, "labelled_size": 4, "seed": 0}
    return pseudo_labels.accuracy_curve(convolutions(), images, VIEWS, every=every, **options)


def test_accuracy_is_measured_every_so_many_updates_and_at_the_end_and_changes_nothing():
    often = curve(2)
    assert [step for step, accuracy in often] == [2, 4, 5]
    assert curve(5) == often[-1:]


def test_accuracy_is_the_share_of_right_names_in_evaluation_mode():
    test, net = digits.dataset(40, size=16, seed=0, split="test"), convolutions()
    classifier = nn.Sequential(net, nn.Linear(net.num_features, 10)).train()
    statistics = net.state_dict()["bn1.running_mean"].clone()
    got = pseudo_labels.accuracy(classifier, test, 16, "image")
    assert torch.equal(net.state_dict()["bn1.running_mean"], statistics)
    assert classifier.training
    pixels = test.images.float() / 255
    pixels = (pixels - pixels.mean((1, 2, 3), keepdim=True)) / pixels.std((1, 2, 3), correction=0, keepdim=True)
    with torch.no_grad():
        guesses = classifier.eval()(pixels).argmax(dim=1)
    assert got == pytest.approx((guesses == test.labels).double().mean().item())
