# SPDX-License-Identifier: Apache-2.0
"""Mistakes in evaluation, each as a function that shows what it costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import Batch
from recipes_lib.evaluation import hypersphere, spectrum
from recipes_lib.evaluation.features import evaluating
from recipes_lib.views.multicrop import MultiCrop, Normalize, Resize, ViewsConfig, eval_view

K, TEMPERATURE = 20, 0.07
"""k-NN's settings where nothing is chosen: DINO's."""
SETTINGS = tuple(product((1, 2, 5, 10, 20, 50, 100, 200), (0.02, 0.07, 0.2, 1.0)))
"""Numbers of neighbours and temperatures to choose from."""
TREATMENTS = ("as they are", "centred", "standardised")
"""What is done to features before their length is made 1."""
SMALL_SETS = (50, 100, 200, 400)
"""Sizes of the sets on which settings are chosen."""
DRAWS = 400
"""Number of such sets of each size."""


def similarities(train: Tensor, test: Tensor) -> dict[str, Tensor]:
    """Three ways to compare features, of which nearest neighbours take the largest values.

    ``cosine``: all rows have length 1. ``product``: the inner product of features as they are, what remains of the cosine
    if the normalisation is forgotten. ``distance``: minus half the squared Euclidean distance of features as they are.
    In the last two all features are divided by one number, the root mean square length of the training features, so that
    a temperature means the same.

    Shapes: [N, D], [M, D] -> [M, N].
    """
    unit, unit_test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    scale = train.square().sum(dim=1).mean().sqrt()
    train, test = train / scale, test / scale
    return {
        "cosine": unit_test @ unit.T,
        "product": test @ train.T,
        "distance": -torch.cdist(test, train).square() / 2,
    }


def right(
    similarity: Tensor, labels: Tensor, wanted: Tensor, *, k: int = K, temperature: float = TEMPERATURE
) -> Tensor:
    """Whether the k most similar training images vote for the right class, with weights exp(similarity / temperature).

    Shapes: ``similarity`` [M, N], ``labels`` int64 [N], ``wanted`` int64 [M] -> bool [M].
    """
    return _vote(*similarity.topk(k, dim=1), labels, wanted, temperature)


def _vote(near: Tensor, neighbours: Tensor, labels: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Whether the neighbours, whose similarities fall from left to right, vote for the right class.

    Shapes: [M, k], int64 [M, k], int64 [N], int64 [M] -> bool [M].
    """
    weights = ((near - near[:, :1]) / temperature).exp()  # a common factor of a row changes no vote
    votes = torch.zeros(len(wanted), int(labels.max()) + 1).scatter_add_(1, labels[neighbours], weights)
    return votes.argmax(dim=1) == wanted


def see_augmented(backbone: nn.Module, images: ImageSet, views: ViewsConfig, seed: int) -> Tensor:
    """The features [N, D] of one random view of each image, as training cuts them."""
    crop, indices = MultiCrop(views, seed), torch.arange(len(images))
    chunks = (Batch(indices=i, epoch=0, images=images.images[i], crops=None, labels=None) for i in indices.split(256))
    return _through(backbone, (crop(chunk)[0] for chunk in chunks))


def see_at(backbone: nn.Module, images: ImageSet, side: int, *, normalize: Normalize, resize: Resize) -> Tensor:
    """The features [N, D] of the evaluation view with another side in pixels."""
    return _through(backbone, (eval_view(chunk, side, normalize, resize) for chunk in images.images.split(256)))


def _through(backbone: nn.Module, views: Iterator[Tensor]) -> Tensor:
    with torch.no_grad(), evaluating(backbone):
        return torch.cat([backbone(view) for view in views])


def of_noise(count: int, width: int, seed: int) -> dict[str, float]:
    """The label-free metrics of Gaussian noise in place of features, [``count``, ``width``]."""
    noise = torch.randn(count, width, generator=randomness.generator(seed, 0, "noise"))
    metrics: Mapping[str, Callable[[Tensor], float]] = {
        "rankme": spectrum.rankme,
        "alpha_req": spectrum.alpha_req,
        "uniformity": hypersphere.uniformity,
        "std": hypersphere.normalized_std,
    }
    return {name: metric(noise) for name, metric in metrics.items()}


def answers(train: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor) -> Tensor:
    """Whether each image is classified rightly by k-NN with each of all settings: bool [settings, M].

    The settings are the treatments of the features, times ``SETTINGS``.

    Shapes: ``train`` [N, D], ``labels`` int64 [N], ``asked`` [M, D], ``wanted`` int64 [M].
    """
    found, mean, std = [], train.mean(dim=0), train.std(dim=0).clamp_min(1e-12)
    for treatment in TREATMENTS:
        rows, others = train, asked
        if treatment != "as they are":
            rows, others = rows - mean, others - mean
        if treatment == "standardised":
            rows, others = rows / std, others / std
        cosines = F.normalize(others, dim=1) @ F.normalize(rows, dim=1).T
        near, neighbours = cosines.topk(max(k for k, _ in SETTINGS), dim=1)
        found += [_vote(near[:, :k], neighbours[:, :k], labels, wanted, temperature) for k, temperature in SETTINGS]
    return torch.stack(found)


def optimism(on_test: Tensor, held_out: Tensor, *, size: int, draws: int = DRAWS, seed: int) -> dict[str, float]:
    """By how much the reported accuracy exceeds the true one, if the best of many settings is chosen on a small set.

    A small test set of ``size`` images is drawn, and a setting is chosen: for ``on_test`` the best one on this very set,
    for ``held_out`` the best one on as many images that were held out of training. Reported is its accuracy on the small
    test set; its true accuracy is that on all other test images. Both are averaged over the draws.

    Shapes: bool [settings, M] and [settings, H]: whether each setting is right for each test and held-out image.
    Raises: ``ValueError`` if ``size`` leaves no other test image, or exceeds the number of held-out images.
    """
    count, held = on_test.shape[1], held_out.shape[1]
    if not 1 <= size < count or size > held:
        raise ValueError(f"size = {size}; use at least 1, less than {count} test and at most {held} held-out images.")
    gaps: dict[str, list[float]] = {"on_test": [], "held_out": []}
    for draw in range(draws):
        order = randomness.permutation(seed, draw, count)
        small, others = on_test[:, order[:size]].double().mean(dim=1), on_test[:, order[size:]].double().mean(dim=1)
        aside = held_out[:, randomness.permutation(seed + 1, draw, held)[:size]].double().mean(dim=1)
        for name, by in (("on_test", small), ("held_out", aside)):
            chosen = int(by.argmax())
            gaps[name].append(float(small[chosen] - others[chosen]))
    return {name: _mean(found) for name, found in gaps.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
