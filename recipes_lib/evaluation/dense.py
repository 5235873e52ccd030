# SPDX-License-Identifier: Apache-2.0
"""Dense probe: how well a linear map tells from one token of a frozen network what is seen at its place in the image.

A label of the whole image says nothing about where things are. Where true masks are known, each token of a Vision
Transformer, and each position of a convolutional network's last feature map, has a label of its own: the class that
covers most of its cell.

The linear map is a ridge regression of the classes' indicators, solved exactly; its penalty is chosen on held-out
training images. The background has most of the tokens. So a class counts as much as the square root of its frequency,
because otherwise a rare class would never be guessed; and the mean over classes of the intersection over union (IoU)
stands beside the share of right tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.data import splits
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.evaluation.features import evaluating, read_chunks
from recipes_lib.models.convit import ConViT
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.vit import VisionTransformer
from recipes_lib.views.multicrop import Normalize, Resize, eval_view

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, as shares of the standardised tokens' variance, which is 1."""
HELD_OUT = 0.1
"""The share of the training images on which the penalty is chosen."""


@dataclass(frozen=True)
class DenseScore:
    """What a dense probe reached on the test images."""

    accuracy: float
    """Share of tokens whose class is found, in [0, 1]."""
    mean_iou: float
    """Mean over classes of the intersection over union, in [0, 1]."""
    penalty: float
    """The penalty that was chosen."""


def token_labels(masks: Tensor, grid: int) -> Tensor:
    """The class that covers most of each cell of a grid over the image; of equal ones the lowest.

    Shapes: int64 [N, side, side], classes from 0 on -> int64 [N, grid * grid], row by row.
    Raises: ``ValueError`` if ``grid`` does not divide the side, or the masks are not square.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or grid < 1 or masks.shape[1] % grid:
        raise ValueError(
            f"masks of {list(masks.shape)} have no {grid}x{grid} cells: the grid must divide a square's side."
        )
    cell = masks.shape[1] // grid
    cells = (
        masks.unflatten(2, (grid, cell)).unflatten(1, (grid, cell)).transpose(2, 3).flatten(3)
    )  # [N, grid, grid, cell^2]
    counts = torch.stack([(cells == kind).sum(dim=3) for kind in range(int(masks.max()) + 1)], dim=-1)
    return counts.argmax(dim=-1).flatten(1)


def tokens(backbone: VisionTransformer | ConViT | ConvNet, images: Tensor) -> Tensor:
    """The patch tokens of a Vision Transformer or a ConViT, or the positions of a convolutional network's last feature map.

    Shapes: [B, 3, side, side] -> [B, grid * grid, D], row by row.
    """
    if isinstance(backbone, VisionTransformer | ConViT):
        return backbone.tokens(images)[:, backbone.num_prefix_tokens :]
    return backbone.layers(images).flatten(2).mT


def extract_tokens(
    backbone: VisionTransformer | ConViT | ConvNet,
    images: ImageSet | ImageFiles,
    *,
    image_size: int,
    normalize: Normalize,
    resize: Resize = "bilinear",
) -> Tensor:
    """The tokens of the evaluation view of all images, of a backbone in evaluation mode: float32 [N, T, D], on the CPU."""
    device, found = next(backbone.parameters()).device, []
    with torch.no_grad(), evaluating(backbone):
        for chunk in read_chunks(images, image_size, 256, 0, resize):
            found.append(tokens(backbone, eval_view(chunk.to(device), image_size, normalize, resize)).float().cpu())
    return torch.cat(found)


def dense_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
) -> DenseScore:
    """What a linear map of each token tells about its label; ``seed`` draws the images that choose the penalty.

    Tokens are standardised with the mean and standard deviation of each dimension over the training images.

    Shapes: ``train`` [N, T, D], ``test`` [M, T, D], labels int64 [N, T] and [M, T].
    Raises: ``ValueError`` if shapes do not fit, there is no penalty, or too few images to hold some out.
    """
    for rows, labels in ((train, train_labels), (test, test_labels)):
        if rows.ndim != 3 or rows.shape[:2] != labels.shape:
            raise ValueError(
                f"tokens [N, T, D] with labels [N, T] are wanted; got {list(rows.shape)}, {list(labels.shape)}."
            )
    held = splits.held_out(torch.arange(len(train)), HELD_OUT, seed)
    if not penalties or not held.any():
        raise ValueError(f"{len(penalties)} penalties and {len(train)} training images; use at least 1 and 5.")
    flat = train.flatten(0, 1).double()
    mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
    scale = torch.where(std > 0, std, torch.ones_like(std))
    train, test = (train.double() - mean) / scale, (test.double() - mean) / scale
    classes = int(max(train_labels.max(), test_labels.max())) + 1

    def reached(fit: Tensor, penalty: float, rows: Tensor, labels: Tensor) -> tuple[float, float]:
        guesses = _ridge(train[fit].flatten(0, 1), train_labels[fit].flatten(), rows.flatten(0, 1), classes, penalty)
        return float((guesses == labels.flatten()).double().mean()), mean_iou(guesses, labels.flatten())

    found = [reached(~held, penalty, train[held], train_labels[held])[1] for penalty in penalties]
    chosen = penalties[max(range(len(penalties)), key=lambda place: found[place])]
    return DenseScore(*reached(torch.ones_like(held), chosen, test, test_labels), chosen)


def mean_iou(guesses: Tensor, labels: Tensor) -> float:
    """The intersection over union of guessed and true places, averaged over the classes that ``labels`` has.

    Shapes: int64 [n], int64 [n].
    """
    kinds = labels.unique()
    both = torch.stack([((guesses == kind) & (labels == kind)).sum() for kind in kinds])
    either = torch.stack([((guesses == kind) | (labels == kind)).sum() for kind in kinds])
    return float((both / either).mean())


def _ridge(rows: Tensor, labels: Tensor, asked: Tensor, classes: int, penalty: float) -> Tensor:
    """The class with the largest indicator, predicted by a weighted ridge regression with an unpenalised intercept.

    Shapes: [n, D], int64 [n], [m, D] -> int64 [m].
    """
    weights = labels.bincount(minlength=classes)[labels].to(rows.dtype).rsqrt()
    weights = (weights / weights.sum())[:, None]
    wanted = F.one_hot(labels, classes).to(rows.dtype)
    middle, usual = (weights * rows).sum(dim=0), (weights * wanted).sum(dim=0)
    centred = rows - middle
    gram = centred.T @ (weights * centred) + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    solved = torch.linalg.solve(gram, centred.T @ (weights * (wanted - usual)))
    return ((asked - middle) @ solved + usual).argmax(dim=1)
